"""All of Kafka: topics, codec, transport, agents, control log, clients."""
