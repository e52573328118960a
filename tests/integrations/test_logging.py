"""Log records as events: what is kept of them, how often a message is made, what never happens."""

from __future__ import annotations

import io
import logging
import logging.config
import logging.handlers
import os
import threading
from typing import Any

import pytest

import shmrec
from shmrec.integrations.logging import Handler
from shmrec.segment import Segment
from tests.recordings import events_of, recorded, rings, words


@pytest.fixture
def logger() -> logging.Logger:
    """One that nobody else hears, pytest neither."""
    return logging.Logger("shop.orders", logging.DEBUG)


class Counted:
    """Counts how often it is made a text."""

    def __init__(self) -> None:
        self.texts = 0

    def __str__(self) -> str:
        self.texts += 1
        return "text"


def test_what_is_kept_of_a_record(made: Segment, logger: logging.Logger) -> None:
    logger.addHandler(Handler())
    try:
        raise LookupError("x")
    except LookupError:
        logger.exception("order %d of %s", 7, "Ada")
    logger.info("plain")
    failed, plain = recorded(made)
    assert (failed.kind, failed.name) == ("log", "shop.orders")
    where = failed.args.pop("where")
    assert where.startswith(__file__ + ":")
    assert where.endswith(" test_what_is_kept_of_a_record")
    assert failed.args == {"level": "ERROR", "message": "order 7 of Ada", "error": "LookupError"}
    assert sorted(plain.args) == ["level", "message", "where"]


def test_levels(made: Segment, logger: logging.Logger) -> None:
    logger.addHandler(Handler("INFO"))
    logger.debug("below")
    logging.addLevelName(25, "NOTICE")
    logger.log(25, "named")
    logger.log(33, "unnamed")
    logger.warning("usual")
    assert [(event.args["level"], event.args.get("levelno")) for event in recorded(made)] == [
        ("NOTICE", 25),
        ("Level 33", 33),
        ("WARNING", None),
    ]


def test_a_long_message_is_cut(made: Segment, logger: logging.Logger) -> None:
    logger.addHandler(Handler())
    logger.info("%s", "x" * 1_000_000)
    [event] = recorded(made)
    assert len(event.args["message"]) == 512


def test_a_message_is_made_once(made: Segment, logger: logging.Logger) -> None:
    logger.addHandler(Handler(snapshot=logging.ERROR))
    argument = Counted()
    logger.error("%s", argument)
    assert argument.texts == 1
    assert words(made) == [("log", os.getpid(), "shop.orders: text")]


def test_a_message_that_another_handler_has_made_is_not_made_again(
    made: Segment, logger: logging.Logger
) -> None:
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    logger.addHandler(Handler())
    argument = Counted()
    logger.info("%s", argument)
    assert argument.texts == 1
    assert [event.args["message"] for event in recorded(made)] == ["text"]


def test_while_detached_no_message_is_made(made: Segment, logger: logging.Logger) -> None:
    handler = Handler(snapshot="INFO")
    handler.addFilter(lambda record: bool(record.getMessage()))
    logger.addHandler(handler)
    shmrec.detach()
    argument = Counted()
    logger.error("%s", argument)
    handler.emit(logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (argument,), None))
    assert argument.texts == 0
    assert words(made) == []


def test_an_argument_that_logs_itself_ends(made: Segment, logger: logging.Logger) -> None:
    class Chatty:
        def __str__(self) -> str:
            logger.info("asked for %s", self)
            return "chatty"

    logger.addHandler(Handler())
    logger.warning("%s", Chatty())
    assert [(event.args["level"], event.args["message"]) for event in recorded(made)] == [
        ("INFO", "asked for %s"),
        ("WARNING", "chatty"),
    ]
    # The next one is made as usual.
    logger.info("%d", 1)
    assert recorded(made)[-1].args["message"] == "1"


class Raising:
    def __str__(self) -> str:
        raise OSError


@pytest.mark.parametrize(("text", "args"), [("%d", ("x",)), ("%s %s", (1,)), ("%s", (Raising(),))])
def test_what_cannot_be_made_is_counted_and_not_told(
    made: Segment,
    logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    text: str,
    args: tuple[Any, ...],
) -> None:
    logger.addHandler(Handler())
    logger.info(text, *args)
    logger.info("next")
    assert [event.args["message"] for event in recorded(made)] == ["next"]
    assert rings(made)[0].entry().losses["unencodable"] == 1
    assert capsys.readouterr().err == ""


def test_a_snapshot_is_called_for_at_its_level_and_above(
    made: Segment, logger: logging.Logger
) -> None:
    logger.addHandler(Handler(snapshot="ERROR"))
    logger.warning("not yet")
    assert words(made) == []
    logger.critical("now\nand how it came")
    assert [reason for _, _, reason in words(made)] == ["shop.orders: now"]


def test_no_such_level() -> None:
    with pytest.raises(ValueError, match="no level 'LOUD'"):
        Handler(snapshot="LOUD")


def test_a_configuration_may_name_it(made: Segment) -> None:
    flight = {
        "class": "shmrec.integrations.logging.Handler",
        "level": "INFO",
        "snapshot": "ERROR",
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"flight": flight},
            "loggers": {"shop.configured": {"handlers": ["flight"], "level": "DEBUG"}},
        }
    )
    logger = logging.getLogger("shop.configured")
    logger.debug("below")
    logger.error("heard")
    assert [event.args["message"] for event in recorded(made)] == ["heard"]
    assert len(words(made)) == 1
    logger.handlers.clear()


def test_filters_and_queues_work(made: Segment, logger: logging.Logger) -> None:
    handler = Handler()
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    keeping = logging.handlers.MemoryHandler(10, target=handler)
    logger.addHandler(keeping)
    logger.info("a secret")
    logger.info("told")
    keeping.flush()
    keeping.close()
    assert [event.args["message"] for event in recorded(made)] == ["told"]


def test_threads_and_a_forked_child(made: Segment, logger: logging.Logger) -> None:
    logger.addHandler(Handler())

    def work(number: int) -> None:
        for _ in range(50):
            logger.info("thread %d", number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pid = os.fork()
    if pid == 0:
        logger.info("child")
        os._exit(0)
    os.waitpid(pid, 0)
    parent, child = rings(made)
    messages = [event.args["message"] for event in events_of(parent)]
    assert sorted(messages) == sorted(f"thread {number}" for number in range(3) for _ in range(50))
    assert [event.args["message"] for event in events_of(child)] == ["child"]
