"""The model and how it gets better; knows no Kafka."""
