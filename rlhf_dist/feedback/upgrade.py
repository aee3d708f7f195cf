"""Stores of earlier versions become today's, and keep everything that was said in them."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, MetaData, inspect, text
from sqlalchemy.schema import CreateColumn

from rlhf_dist.feedback.orders import place_of, turned
from rlhf_dist.files import as_json

BATCH = 1000


def upgrade(engine: Engine, tables: MetaData) -> None:
    """Make what is missing, in one transaction: tables, columns, and what lay elsewhere before.

    Args:
        engine: of the store.
        tables: as they are today.
    """
    with engine.begin() as connection:
        before = _columns(connection)
        tables.create_all(connection)
        for table in tables.sorted_tables:
            for column in table.columns:
                if table.name in before and column.name not in before[table.name]:
                    made = CreateColumn(column).compile(dialect=engine.dialect)
                    connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {made}"))
        if "answer_a" in before.get("tasks", ()):
            _move_texts(connection)
        for index in (each for table in tables.sorted_tables if table.name in before for each in table.indexes):
            index.create(connection, checkfirst=True)


def _columns(connection: Connection) -> dict[str, set[str]]:
    seen = inspect(connection)
    return {name: {column["name"] for column in seen.get_columns(name)} for name in seen.get_table_names()}


def _move_texts(connection: Connection) -> None:
    """Answers had a column each, beside the facts."""
    old = connection.execute(
        text(
            "SELECT id, digest, prompt, answer_a, answer_b, source_a, source_b, columns FROM tasks "
            "LEFT JOIN prompt_sources ON prompt_sources.task_id = tasks.id"
        )
    )
    facts = text("UPDATE tasks SET place = :place, sources = :sources, lengths = :lengths WHERE id = :id")
    texts = text(
        "INSERT INTO task_texts (task_id, prompt, answers, columns, criteria) VALUES (:id, :prompt, :answers, :columns, '')"
    )
    rows = [_row(*each) for each in old]
    for start in range(0, len(rows), BATCH):
        connection.execute(facts, rows[start : start + BATCH])
        connection.execute(texts, rows[start : start + BATCH])
    seen = text("UPDATE judgements SET order_shown = :order WHERE id = :id")
    pairs = text(
        "SELECT j.id, task_id, annotator_id FROM judgements j JOIN tasks t ON t.id = task_id WHERE answer_b IS NOT NULL"
    )
    for number, task, annotator in connection.execute(pairs).all():
        connection.execute(seen, {"id": number, "order": "10" if turned(task, annotator) else "01"})
    connection.execute(text("DROP INDEX IF EXISTS open_tasks"))
    for column in ("prompt", "answer_a", "answer_b", "source_a", "source_b"):
        connection.execute(text(f"ALTER TABLE tasks DROP COLUMN {column}"))


def _row(number: int, digest: str, prompt: str, *told: str | None) -> dict[str, object]:
    a, b, source_a, source_b, columns = told
    answers = [each for each in (a, b) if each is not None]
    sources = [source_a, source_b][: len(answers)]
    return {
        "id": number,
        "place": place_of(digest),
        "sources": as_json(sources),
        "lengths": as_json([len(each) for each in answers]),
        "prompt": as_json(prompt),
        "answers": as_json(answers),
        "columns": columns or "",
    }
