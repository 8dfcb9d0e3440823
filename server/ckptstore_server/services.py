"""The daemon's services, wired together once: what the API and the descriptor socket call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckptstore_server.attempts import AttemptService
from ckptstore_server.content import Content
from ckptstore_server.deletion import Deletion
from ckptstore_server.drain import Drainer
from ckptstore_server.drain_watch import DrainWatch
from ckptstore_server.evict import Evictor
from ckptstore_server.hugging_face.fingerprinting import Fingerprinter
from ckptstore_server.hugging_face.models import Models
from ckptstore_server.hugging_face.upstream import Upstream, WithUpstream
from ckptstore_server.incremental import Increments
from ckptstore_server.ingest import Ingest
from ckptstore_server.namespace import Namespace
from ckptstore_server.node import Node
from ckptstore_server.publish import Publisher
from ckptstore_server.readers.attached import Attached
from ckptstore_server.readers.attachments_records import AttachmentsRecords
from ckptstore_server.readers.cache.cache import Cache
from ckptstore_server.readers.cache.control import CacheControl
from ckptstore_server.readers.cache.placing import cache_of
from ckptstore_server.readers.cache.scrub import Scrub
from ckptstore_server.readers.cache.warm import Warmer
from ckptstore_server.readers.changes import Changes
from ckptstore_server.readers.tree import Tree
from ckptstore_server.recall import Recall
from ckptstore_server.replicas import Replicas
from ckptstore_server.retention import Keeper
from ckptstore_server.sessions import Sessions
from ckptstore_server.small_files import SmallFiles
from ckptstore_server.small_reads import SmallReads
from ckptstore_server.snapshots import Snapshots
from ckptstore_server.verify import Verifier
from ckptstore_server.watching import Watching


@dataclass(frozen=True)
class Services:
    node: Node
    sessions: Sessions
    evictor: Evictor
    publisher: Publisher
    attempts: AttemptService
    small_files: SmallFiles
    replicas: Replicas
    drainer: Drainer
    drain_watch: DrainWatch
    recall: Recall
    deletion: Deletion
    keeper: Keeper
    namespace: Namespace
    content: Content
    small_reads: SmallReads
    verifier: Verifier
    watching: Watching
    snapshots: Snapshots
    attached: Attached
    attachments_records: AttachmentsRecords
    tree: Tree
    changes: Changes
    cache: Cache
    cache_control: CacheControl
    warmer: Warmer
    scrub: Scrub
    models: Models
    request_stop: Callable[[], None]

    @classmethod
    def build(cls, node: Node, request_stop: Callable[[], None]) -> Services:
        sessions = Sessions()
        replicas = Replicas(node)
        evictor = Evictor(node, replicas)
        publisher = Publisher(node)
        ingest = Ingest(node, evictor, Increments(node, replicas))
        drainer = Drainer(node, publisher, replicas, evictor)
        recall = Recall(node, replicas, evictor)
        attached = Attached(node)
        tree = Tree(node, replicas, attached)
        hub = node.settings.hugging_face
        upstream = Upstream(hub) if hub.upstream is not None else None
        cache = cache_of(node, replicas, tree if upstream is None else WithUpstream(tree, upstream))
        tree.kept = lambda: [held.file for held in cache.shelf.held() if cache.shelf.newest(held.file.path) == held.file.version]
        control = CacheControl(cache)
        evictor.others_give_way = cache.give_way
        fingerprinter = Fingerprinter(node, replicas)
        publisher.before_publish = fingerprinter.before_publish
        changes = Changes(node)
        publisher.after_publish = changes.told
        return cls(
            node=node,
            sessions=sessions,
            evictor=evictor,
            publisher=publisher,
            attempts=AttemptService(node, sessions, ingest, publisher),
            small_files=SmallFiles(node, ingest),
            replicas=replicas,
            drainer=drainer,
            drain_watch=DrainWatch(node, drainer, sessions),
            recall=recall,
            deletion=Deletion(node, publisher, replicas),
            keeper=Keeper(node),
            namespace=Namespace(node, attached),
            content=Content(node, replicas, recall, cache),
            small_reads=SmallReads(node),
            verifier=Verifier(node, replicas, publisher),
            watching=Watching(node, changes),
            snapshots=Snapshots(node, sessions),
            attached=attached,
            attachments_records=AttachmentsRecords(node),
            tree=tree,
            changes=changes,
            cache=cache,
            cache_control=control,
            warmer=Warmer(cache, tree, control.pin),
            scrub=Scrub(cache, every_s=node.settings.cache.scrub_every),
            models=Models(node, tree, fingerprinter, upstream),
            request_stop=request_stop,
        )
