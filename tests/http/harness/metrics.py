# SPDX-License-Identifier: Apache-2.0
"""Reading GET /metrics."""

from prometheus_client.parser import text_string_to_metric_families


def families(client):
    answer = client.get("/metrics")
    assert answer.status == 200, answer
    return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}


def total(client, name, **labels):
    """The sum of all samples of a name whose labels are as given."""
    return sum(sample.value
               for family in families(client).values()
               for sample in family.samples
               if sample.name == name and labels.items() <= sample.labels.items())


def slots_used(client):
    return total(client, "ssmd_slots_used")
