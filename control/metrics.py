"""What a replica tells Prometheus: read from its parts when somebody asks."""
from collections.abc import Iterable

from agents.telemetry import exposition
from agents.telemetry.exposition import Metric, counter, gauge, histogram
from agents.telemetry.timing import Timings
from control.kernel import reconcile
from control.kernel.database import Database
from control.kernel.etcd_store import EtcdStore
from control.kernel.rpc import Dispatcher
from control.watch.hub import Hub

__all__ = ["text"]


def text(database: Database, store: EtcdStore, for_users: Dispatcher, for_agents: Dispatcher, watches: Hub) -> tuple[str, bytes]:
    """The media type and the text of all metrics."""
    return exposition.CONTENT_TYPE, exposition.text(lambda: _metrics(database, store, for_users, for_agents, watches))


def _metrics(database: Database, store: EtcdStore, for_users: Dispatcher, for_agents: Dispatcher,
             watches: Hub) -> Iterable[Metric]:
    cache = database.cache
    yield _calls("brume_rpc_seconds", "Calls by clients, REST's and native ones; streams are not among them.", for_users)
    yield _calls("brume_agent_rpc_seconds", "Calls by agents; streams are not among them.", for_agents)
    yield histogram("brume_commit_seconds", "Commits, by outcome: ok, Stale for a lost race, or another error.", ["outcome"],
                    store.commits)
    yield counter("brume_commits", "Commits that were made.", [], [((), store.commits.count("ok"))])
    yield counter("brume_conflicts", "Commits that lost a race, and were decided anew.", [], [((), store.commits.count("Stale"))])
    yield gauge("brume_revision", "The revision that this replica's reads show.", [], [((), cache.revision)])
    yield gauge("brume_revisions_behind", "How far that is behind the newest revision that the store told of.", [],
                [((), max(0, store.newest - cache.revision))])
    running = list(reconcile.RUNNING)
    yield gauge("brume_reconcile_queue_depth", "Keys that wait for a worker.", ["controller"],
                [((each.name,), each.queue.depth) for each in running])
    yield gauge("brume_reconcile_queue_age_seconds", "How long the oldest of them has waited.", ["controller"],
                [((each.name,), each.queue.age) for each in running])
    steps = Timings()
    steps.rows = {(each.name, *labels): row for each in running for labels, row in each.timings.rows.items()}
    yield histogram("brume_reconcile_seconds", "Steps of reconcilers.", ["controller", "outcome"], steps)
    yield gauge("brume_watches", "Watches that are read.", ["kind"],
                [((name,), count) for name, count in watches.readers().items()])
    yield counter("brume_watch_events", "Events handed to watches.", ["kind"],
                  [((name,), count) for name, count in watches.told.items()])
    yield counter("brume_watches_dropped", "Watches that were read too slowly.", [], [((), watches.dropped)])


def _calls(name: str, help: str, dispatcher: Dispatcher) -> Metric:
    return histogram(name, help, ["method", "outcome"], dispatcher.timings)
