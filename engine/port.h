// SPDX-License-Identifier: Apache-2.0
// Ports: the way of events from the engine thread to a consumer.
//
// While a step's results are handed out the engine thread gathers each port's events in arrays of
// its own; port_flush turns them into one ssm_batch (a single allocation), links it to the port's
// list under the port's lock and wakes the consumer once. Ports are counted: the consumer holds one
// reference until ssm_port_close, the engine one until the port is closed or the engine is freed,
// and every job one for as long as it lives.
#ifndef SSM_ENGINE_PORT_H
#define SSM_ENGINE_PORT_H

#include <ssm/engine.h>

void port_ref(ssm_port *port);
void port_unref(ssm_port *port);

// Engine thread. Copies what the event points to (top_*, usage, message). False if memory is short:
// the event is lost.
bool port_post(ssm_port *port, const ssm_event *event);

// Engine thread: hands over what was posted since the last flush, if anything.
void port_flush(ssm_port *port);

// Engine thread: whether its consumer has closed it.
bool port_is_closed(ssm_port *port);

// The engine is going away: closing the port no longer reaches it.
void port_detach(ssm_port *port);

// The engine's list of its ports, under the engine's lock.
typedef struct port_list {
    ssm_port **items;
    size_t n, cap;
} port_list;
bool port_list_add(port_list *list, ssm_port *port);    // takes no reference
void port_list_remove(port_list *list, ssm_port *port); // keeps the order

#endif
