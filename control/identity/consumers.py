"""Serves consumers: programs of other parties that users may let act for them. A secret is shown once, and kept sealed."""
import secrets
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity.model import CONSUMER, apply_update, check_resource, missing, new_resource
from control.identity.removal import remove_consumer
from control.identity.vault import seal
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import oauth1_pb2 as pb
from protos.identity.v1.oauth1_records_pb2 import ConsumerRecord


class Consumers:
    """identity.v1.Consumers."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateConsumer(self, request: pb.CreateConsumerRequest, call: Call) -> pb.CreateConsumerResponse:
        consumer = new_resource(request.consumer)
        consumer.id = uuid.uuid4().hex
        _check(consumer)
        secret = secrets.token_hex(32)

        def decide(transaction: Transaction) -> None:
            transaction.put(CONSUMER, ConsumerRecord(consumer=consumer, sealed_secret=seal(transaction, secret)))

        await self._db.transact(decide)
        answer = pb.CreateConsumerResponse(consumer=consumer)
        answer.consumer.secret = secret
        return answer

    async def ListConsumers(self, request: pb.ListConsumersRequest, call: Call) -> pb.ListConsumersResponse:
        rows, marker = page(select([record.consumer for record in self._db.cache.all(CONSUMER)], request.filters),
                            limit=request.limit, marker=request.marker)
        return pb.ListConsumersResponse(consumers=rows, next_page_marker=marker)

    async def GetConsumer(self, request: pb.GetConsumerRequest, call: Call) -> pb.GetConsumerResponse:
        record = self._db.get(CONSUMER, request.consumer_id)
        if record is None:
            raise missing("consumer", request.consumer_id)
        return pb.GetConsumerResponse(consumer=record.consumer)

    async def UpdateConsumer(self, request: pb.UpdateConsumerRequest, call: Call) -> pb.UpdateConsumerResponse:
        def decide(transaction: Transaction) -> ConsumerRecord:
            record = transaction.get(CONSUMER, request.consumer_id)
            if record is None:
                raise missing("consumer", request.consumer_id)
            _check(request.consumer)
            apply_update(record.consumer, request.consumer, request.update_mask.paths)
            check_resource(record.consumer)
            transaction.put(CONSUMER, record)
            return record

        return pb.UpdateConsumerResponse(consumer=(await self._db.transact(decide)).consumer)

    async def DeleteConsumer(self, request: pb.DeleteConsumerRequest, call: Call) -> Empty:
        await remove_consumer(self._db, request.consumer_id)
        return Empty()


def _check(consumer: pb.Consumer) -> None:
    check_resource(consumer)
    if consumer.HasField("secret"):
        raise Invalid("identity.consumer.secret", "Invalid input for field 'secret': it is made up, and does not change.")
