"""Programs on a RabbitMQ that is there: `python -m examples.rabbitmq.attach amqp://…`."""
