"""Feast's registry in PostgreSQL, for analysts of a whole house: the definitions of each decision's newest store.

A matter of configuration (`registry_type: sql`). Who serves never reads it: a registry can run code in its reader, and rows need none.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from features.rows import StoreError

SETTING = "CONCORDANT_FEAST_REGISTRY"  # postgresql://USER:PASSWORD@HOST:PORT/DATABASE; not set: every store has its own file only


def publish(folder: Path, project: str, objects: Sequence[Any]) -> bool:
    """Put a store's definitions where analysts look them up, in place of the project's former ones; whether there is such a place.

    Raises StoreError where it can't be written; the message never holds the address, which may hold a password.
    """
    if not os.environ.get(SETTING):
        return False
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with opened(folder, project) as store:
            store.apply(list(objects))
    except SQLAlchemyError as error:
        raise StoreError(f"Feast's shared registry can't be written: {type(error).__name__}. Check {SETTING} and the server.") from None
    return True


@contextmanager
def opened(folder: Path, project: str) -> Iterator[Any]:
    """Feast on the shared registry, for as long as it is used: Feast itself leaves its connections open."""
    from feast import FeatureStore

    store = FeatureStore(config=config(folder, project))
    try:
        yield store
    finally:
        for engine in {id(one): one for one in (store.registry.read_engine, store.registry.write_engine)}.values():
            engine.dispose()


def config(folder: Path, project: str) -> Any:
    """Feast's configuration for analysts: the shared registry, offline files where their definitions say that they lie.

    Raises StoreError where the setting names no PostgreSQL.
    """
    from feast import RepoConfig

    url = os.environ.get(SETTING, "")
    scheme, place = url.partition("://")[::2]
    try:
        named = scheme in ("postgres", "postgresql") and bool(urlsplit(url).hostname) and len(urlsplit(url).path) > 1
    except ValueError:
        named = False
    if not named:
        raise StoreError(f"{SETTING} names no PostgreSQL. Give postgresql://USER:PASSWORD@HOST:PORT/DATABASE.")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "3")
    text = Path(__file__).with_name("repo").joinpath("feature_store.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text.replace("${CONCORDANT_STORE}", str(folder.resolve())))
    registry = {"registry_type": "sql", "path": f"postgresql+psycopg://{place}", "cache_ttl_seconds": 60}
    return RepoConfig(**(raw | {"project": project, "registry": registry}), repo_path=folder.resolve())
