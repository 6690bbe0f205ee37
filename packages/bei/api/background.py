"""Lines of jobs as calls of ours."""

from bei.api.answering import answer
from bei.api.call import Call
from bei.api.table import TABLE
from bei.jobs.lines import Line
from bei.jobs.output import Answered
from bei.jobs.records import Order
from bei.serving.registry import Registry


async def answer_line(registry: Registry, order: Order, line: Line, request_id: str) -> Answered:
    """The answer to a line, in the background. The job was admitted with a key, so its lines need none."""
    headers = {"content-type": "application/json", "x-request-id": request_id}
    call = Call("POST", order.endpoint, line.body, headers, base=order.base, is_background=True)
    reply = await answer(registry, call, TABLE.route(call))
    return Answered(reply.status, reply.body, int(reply.headers.get("x-compute-tokens", 0)))
