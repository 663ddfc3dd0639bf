"""The cluster that the other tests here lean on: its hosts are as separate as machines."""

import pytest

pytestmark = pytest.mark.xdist_group("slurm")


def test_nodes_share_a_folder_but_neither_tmp_nor_dev_shm_nor_processes(slurm, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text(
        "hostname > /tmp/name; cp /tmp/name /dev/shm/name; sleep 1; "  # long enough for the other to overwrite it
        'cat /tmp/name /dev/shm/name > "seen.$(hostname)"; '
        'grep -lx slurmd /proc/[0-9]*/comm | wc -l >> "seen.$(hostname)"'
    )
    job = slurm.submit(
        "--nodes=2", "--ntasks-per-node=1", f"--chdir={tmp_path}", "--output=out.txt", f"--wrap=srun sh {script}"
    )
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    seen = {path.suffix[1:]: path.read_text().split() for path in tmp_path.glob("seen.*")}
    assert len(seen) == 2
    assert all(words == [name, name, "1"] for name, words in seen.items()), seen


def test_nodes_reach_each_other_by_name(slurm):
    listen = "import socket; s = socket.create_server(('', 4000)); c, _ = s.accept(); print(c.recv(9).decode())"
    call = "import socket, time; time.sleep(1); socket.create_connection(('n1', 4000)).sendall(b'hello')"
    script = f'import os; exec("""{listen}""" if os.environ["SLURM_PROCID"] == "0" else """{call}""")'
    heard = slurm.run("srun", "--nodes=2", "--nodelist=n1,n2", "--ntasks-per-node=1", "python3", "-c", script)
    assert (heard.code, heard.out) == (0, "hello\n"), heard.err
