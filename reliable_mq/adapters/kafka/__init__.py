"""Kafka, by confluent-kafka. Not built yet: so far what needs no client."""
