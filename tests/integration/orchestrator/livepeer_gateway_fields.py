"""Runs in the environment of PyPI livepeer-gateway: prints every message of its net package as JSON."""

import json

from livepeer_gateway import lp_rpc_pb2


def described(message):
    """Return of each field, by name, its number, its type and whether it repeats; also of the messages inside."""
    fields = {field.name: [field.number, field.type, field.is_repeated] for field in message.fields}
    found = {message.full_name: fields}
    for nested in message.nested_types:
        found |= described(nested)
    return found


messages = {}
for message in lp_rpc_pb2.DESCRIPTOR.message_types_by_name.values():
    messages |= described(message)
services = {
    service.full_name: {
        method.name: [method.input_type.full_name, method.output_type.full_name] for method in service.methods
    }
    for service in lp_rpc_pb2.DESCRIPTOR.services_by_name.values()
}
print(json.dumps({"messages": messages, "services": services}))
