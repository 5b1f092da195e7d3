"""What an agent tells Prometheus. Imported when it is asked for the first time: an idle agent's memory is mostly modules."""
from collections.abc import Iterable

from agents.agent import Agent
from agents.link import Link
from agents.telemetry import exposition
from agents.telemetry.exposition import Metric, counter, gauge, histogram

__all__ = ["text"]


def text(agent: Agent, link: Link) -> tuple[str, bytes]:
    """The media type and the text of all metrics."""
    return exposition.CONTENT_TYPE, exposition.text(lambda: _metrics(agent, link))


def _metrics(agent: Agent, link: Link) -> Iterable[Metric]:
    counts = agent.counts()
    yield gauge("brume_agent_attached", "1 while the agent has a stream to the control plane.", [], [((), link.attached)])
    yield gauge("brume_agent_servers", "Servers that this host shall have.", [], [((), counts["servers"])])
    yield gauge("brume_agent_servers_at_work", "Servers that something is being done for, or will be tried again.", [],
                [((), counts["at work"])])
    yield histogram("brume_agent_step_seconds", "Steps taken for servers.", ["step", "outcome"], agent.timings)
    yield counter("brume_agent_attaches", "Streams to the control plane that were begun.", [], [((), link.attaches)])
