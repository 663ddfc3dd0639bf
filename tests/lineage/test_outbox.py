import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from tinyllama.lineage import RunRecord
from tinyllama.lineage.outbox import Letter, Outbox, is_training

MakeRecord = Callable[..., RunRecord]


def test_a_letter_is_read_as_it_was_written(make_record: MakeRecord) -> None:
    record = make_record("continual", "b", "a", branch=True, adopted_from="elsewhere", first_step=7)
    letter = Letter("http://there", record).enclosing([record.directory / "plan.json", Path("/plots")])
    Outbox(record.outbox).put(letter)
    ((_, found),) = Outbox(record.outbox).letters("http://there")
    assert found == letter
    assert Outbox(record.outbox).letters(None) == []


def test_a_letter_moves_with_its_run(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a")
    Outbox(record.outbox).put(Letter(None, record).enclosing([record.directory / "plan.json"]))
    moved = Path(shutil.move(record.directory, tmp_path / "elsewhere"))
    ((_, letter),) = Outbox(moved / "outbox").letters(None)
    assert letter.record.directory == moved
    assert letter.record.journal == moved / "metrics.jsonl"
    assert letter.artifacts == (moved / "plan.json",)


def test_the_newest_life_comes_last_and_removing_one_leaves_what_came_after(make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    Outbox(record.outbox).put(Letter(None, record))
    delivered = [path for path, _ in Outbox(record.outbox).letters(None)]
    later = Outbox(record.outbox)
    later.put(Letter(None, record))
    later.put(Letter(None, record, status="FINISHED"))
    assert [letter.status for _, letter in later.letters(None)] == [None, "FINISHED"]
    later.remove(delivered)
    assert [letter.status for _, letter in later.letters(None)] == ["FINISHED"]


def test_a_life_that_could_not_say_how_it_ended_was_killed_unless_its_run_is_done(make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    assert Letter(None, record).final_status == "KILLED"
    record.done.touch()
    assert Letter(None, record).final_status == "FINISHED"
    assert Letter(None, record, status="FAILED").final_status == "FAILED"


def test_the_familys_other_runs_with_letters_are_found(make_record: MakeRecord) -> None:
    records = [make_record("continual", letter) for letter in "abc"]
    for record in records[:2]:
        Outbox(record.outbox).put(Letter(None, record))
    assert [other.folder for other in Outbox(records[2].outbox).others()] == [record.outbox for record in records[:2]]
    assert [other.folder for other in Outbox(records[0].outbox).others()] == [records[1].outbox]


def test_one_process_delivers_at_a_time(make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    one, other = Outbox(record.outbox), Outbox(record.outbox)
    assert one.take() and one.take()
    assert not other.take()
    one.release()
    assert other.take()


def test_whoever_trains_a_run_is_seen(make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    assert not is_training(record)
    with record.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_training(record)
    assert not is_training(record)
