// SPDX-License-Identifier: Apache-2.0
// The engine thread: turn after turn until it is stopped, asleep when there is nothing to do.
#include "engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void submit(ssm_engine *engine, job *j) {
    j->client = clients_ref(&engine->clients, j->client_key);
    list_append(&engine->waiting, j);
    if (!j->client)
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOMEM, "no memory for the request");
    else if (j->session_name[0])
        turn_submit(engine, j);
}

static void cancel(ssm_engine *engine, job *j, int32_t index) {
    if (index < 0) {
        job_end(engine, j, SSM_FINISH_CANCELLED, 0, NULL);
    } else if (index < j->n_choices) {
        choice_end(engine, &j->choices[index], SSM_FINISH_CANCELLED, -1);
    }
}

static void finish(ssm_engine *engine, job *j, int32_t index, int64_t n_tokens) {
    if (index < 0 || index >= j->n_choices)
        return;
    choice *c = &j->choices[index];
    c->cut = n_tokens < c->generated ? n_tokens : c->generated;
    choice_end(engine, c, SSM_FINISH_STOP, -1);
}

static void keep(ssm_engine *engine, job *j, const command *c) {
    if (c->n_memo > 0)
        memcpy(j->memo, c->memo, c->n_memo);
    j->n_memo = c->n_memo;
    finish(engine, j, 0, c->n_tokens);
}

static void apply(ssm_engine *engine, command *commands) {
    while (commands) {
        command *c = commands;
        commands = c->next;
        job *j = c->job;
        if (c->kind == COMMAND_SUBMIT)
            submit(engine, j);
        else if (c->kind == COMMAND_STORED)
            durable_done(engine, c->stored);
        else if (c->kind == COMMAND_MOVED)
            reuse_moved(engine, c->moved);
        else if (c->kind == COMMAND_SESSION)
            session_answer(engine, c->call);
        else if (!(j = list_find(&engine->running, c->id)))
            j = list_find(&engine->waiting, c->id);
        if (j && c->kind == COMMAND_CANCEL)
            cancel(engine, j, c->choice);
        if (j && c->kind == COMMAND_FINISH)
            finish(engine, j, c->choice, c->n_tokens);
        if (j && c->kind == COMMAND_KEEP)
            keep(engine, j, c);
        if (j && c->kind == COMMAND_PAUSE)
            j->is_paused = c->paused;
        free(c->memo);
        free(c);
    }
}

static void end_all(ssm_engine *engine, ssm_finish reason, int code, const char *message) {
    while (engine->running.first)
        job_end(engine, engine->running.first, reason, code, message);
    while (engine->waiting.first)
        job_end(engine, engine->waiting.first, reason, code, message);
}

// Jobs whose consumer has gone, or whose answer has lost an event.
static void end_orphans(ssm_engine *engine, job_list *list, bool check_ports) {
    job *next;
    for (job *j = list->first; j; j = next) {
        next = j->next;
        if (j->error != 0)
            job_end(engine, j, SSM_FINISH_ERROR, 0, NULL);
        else if (check_ports && port_is_closed(j->port))
            job_end(engine, j, SSM_FINISH_CANCELLED, 0, NULL);
    }
}

// A copy of the list of ports, as only this thread removes from it. Returns how many.
static size_t copy_ports(ssm_engine *engine, ssm_port **out, size_t cap) {
    pthread_mutex_lock(&engine->lock);
    const size_t n = engine->ports.n < cap ? engine->ports.n : cap;
    for (size_t i = 0; i < n; i++)
        out[i] = engine->ports.items[i];
    pthread_mutex_unlock(&engine->lock);
    return n;
}

static void flush_ports(ssm_engine *engine) {
    ssm_port *ports[MAX_PORTS];
    const size_t n = copy_ports(engine, ports, MAX_PORTS);
    for (size_t i = 0; i < n; i++)
        port_flush(ports[i]);
}

static void forget_closed_ports(ssm_engine *engine) {
    ssm_port *ports[MAX_PORTS];
    const size_t n = copy_ports(engine, ports, MAX_PORTS);
    for (size_t i = 0; i < n; i++) {
        if (!port_is_closed(ports[i]))
            continue;
        pthread_mutex_lock(&engine->lock);
        port_list_remove(&engine->ports, ports[i]);
        pthread_mutex_unlock(&engine->lock);
        port_unref(ports[i]);
    }
}

static void drop_flights(ssm_engine *engine) {
    while (engine->n_flights > 0) {
        flight *f = &engine->flights[engine->first_flight];
        for (int32_t i = 0; i < f->n_entries; i++)
            f->entries[i].choice->job->refs--;
        engine->first_flight ^= 1;
        engine->n_flights--;
    }
}

static void fail(ssm_engine *engine, const ssm_error *err) {
    pthread_mutex_lock(&engine->lock);
    engine->is_failed = true;
    pthread_mutex_unlock(&engine->lock);
    drop_flights(engine);
    end_all(engine, SSM_FINISH_ERROR, err->code, err->message);
}

static void learn_pace(ssm_engine *engine, const flight *f, double seconds) {
    if (f->n_tokens < 32)
        return; // dominated by reading the weights: says nothing about longer steps
    const double pace = seconds / f->n_tokens;
    const double old = engine->seconds_per_token;
    engine->seconds_per_token = old > 0 ? 0.75 * old + 0.25 * pace : pace;
}

static int collect_oldest(ssm_engine *engine, ssm_error *err) {
    flight *f = &engine->flights[engine->first_flight];
    const int rc = step_collect(engine, f, err);
    if (rc != 0)
        return rc;
    const uint64_t now = engine_now_ns();
    // Of two flights the second runs on the device only once the first has landed.
    const uint64_t from = f->launched_ns > engine->landed_ns ? f->launched_ns : engine->landed_ns;
    const double seconds = (double)(now - from) * 1e-9;
    engine->landed_ns = now;
    engine->first_flight ^= 1;
    engine->n_flights--;
    learn_pace(engine, f, seconds);
    stats_step(engine, f, seconds);
    outcome_sampled(engine, f);
    return 0;
}

// One turn's work on the device; false if there was none.
static bool advance(ssm_engine *engine) {
    const int32_t depth = engine->device_info.run_ahead ? 2 : 1;
    ssm_error err;
    int rc = 0;
    assert(engine->n_flights < depth);
    flight *next = &engine->flights[(engine->first_flight + engine->n_flights) & 1];
    const bool is_planned = plan_build(engine, next);
    if (is_planned) {
        engine->n_flights++;
        rc = step_launch(engine, next, &err);
    }
    const bool is_due = engine->n_flights > 0 && (engine->n_flights == depth || !is_planned);
    if (rc == 0 && is_due)
        rc = collect_oldest(engine, &err);
    if (rc != 0)
        fail(engine, &err);
    return is_planned || is_due; // what was collected may have freed slots that others wait for
}

// What other threads may see of this turn.
static void publish(ssm_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    const bool had_work = engine->has_work;
    engine->n_waiting = engine->waiting.n;
    engine->n_running = engine->running.n;
    engine->n_free_slots = engine->slots.n_free;
    engine->has_work = engine->waiting.n + engine->running.n > 0;
    stats_cache(engine);
    if (!had_work && engine->has_work)
        engine->last_step_ns = engine_now_ns();
    pthread_mutex_unlock(&engine->lock);
}

// Sleeps until there is a command or it is time to look for sessions that are too old, or could not
// be written; false: the latter.
static bool wait_wake(ssm_engine *engine) {
    const int32_t retry = durable_pause(engine);
    int32_t pause = quota_pause(engine);
    struct timespec until;
    if (retry > 0 && (pause == 0 || retry < pause))
        pause = retry;
    if (pause == 0)
        return pthread_cond_wait(&engine->wake, &engine->lock) == 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += pause;
    return pthread_cond_timedwait(&engine->wake, &engine->lock, &until) == 0;
}

// Waits for something to do if `is_idle`; takes the inbox. False: the engine is to stop.
static bool take_inbox(ssm_engine *engine, bool is_idle, command **commands, bool *closed_ports) {
    pthread_mutex_lock(&engine->lock);
    while (is_idle && !engine->inbox_first && !engine->has_closed_ports &&
           (!engine->is_stopping || engine->is_flushing) && wait_wake(engine)) {
    }
    *commands = engine->inbox_first;
    engine->inbox_first = NULL;
    engine->inbox_last = &engine->inbox_first;
    engine->n_waiting += engine->n_inbox_jobs;
    engine->n_inbox_jobs = 0;
    *closed_ports = engine->has_closed_ports;
    engine->has_closed_ports = false;
    const bool goes_on = !engine->is_stopping;
    pthread_mutex_unlock(&engine->lock);
    return goes_on;
}

// Ended jobs that this thread has something to do for: not those that wait for the disk.
static bool has_ended(const ssm_engine *engine) {
    const job *j = engine->ended.first;
    while (j && j->n_stores > 0)
        j = j->next;
    return j != NULL;
}

// The last writes are done, and whoever waited for them is answered.
static void close_store(ssm_engine *engine) {
    command *commands;
    bool closed_ports;
    while (durable_flush(engine)) {
        take_inbox(engine, true, &commands, &closed_ports);
        apply(engine, commands);
    }
    durable_count_lost(engine);
    durable_close(engine);
    spill_close(engine->cache.disk);
    engine->cache.disk = NULL;
    take_inbox(engine, false, &commands, &closed_ports);
    apply(engine, commands);
    end_all(engine, SSM_FINISH_CANCELLED, SSM_ECANCELED, NULL); // what came in just now
    jobs_sweep(engine);
    flush_ports(engine);
}

void *engine_thread(void *arg) {
    ssm_engine *engine = arg;
    bool is_idle = true, goes_on = true;
    while (goes_on) {
        command *commands;
        bool closed_ports;
        goes_on = take_inbox(engine, is_idle, &commands, &closed_ports);
        apply(engine, commands);
        quota_sweep(engine);
        durable_retry(engine);
        end_orphans(engine, &engine->running, closed_ports);
        end_orphans(engine, &engine->waiting, closed_ports);
        if (!goes_on) {
            drop_flights(engine);
            end_all(engine, SSM_FINISH_CANCELLED, SSM_ECANCELED, NULL);
        }
        if (engine->is_failed) // written by this thread alone
            end_all(engine, SSM_FINISH_ERROR, SSM_EDEVICE, "the device has failed");
        is_idle = true;
        if (goes_on && !engine->is_failed) {
            ssm_error err;
            if (admission_run(engine, &err) != 0)
                fail(engine, &err);
            else
                is_idle = !advance(engine);
            if (engine->is_shared)
                shared_await(engine);
        }
        jobs_sweep(engine);
        publish(engine); // slots are seen free before the answers that freed them are
        flush_ports(engine);
        if (closed_ports)
            forget_closed_ports(engine);
        is_idle = is_idle && !has_ended(engine);
    }
    close_store(engine);
    return NULL;
}
