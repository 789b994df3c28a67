"""launch/run_tpu.sh on a cloud of files: what it asks for, what it survives, and what is deleted in the end."""

import re
import subprocess
from pathlib import Path

import pytest
from fake_cloud import Cloud, control_c

SCRIPT = Path(__file__).parents[2] / "launch" / "run_tpu.sh"
TRAINS_UNTIL_STOPPED = """
printf '[h%s] step 1\\n' 0 1
printf 'status h%s running\\n' 0 1 >status
while [ ! -e stopped ]; do sleep 0.05; done
exit 143
"""


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def test_the_whole_way(cloud):
    done = cloud.run(SCRIPT, "--config.data.path=gs://data/packed", "--config.train.steps=5", BRANCH=None)
    assert done.returncode == 0, done.stderr
    create = cloud.calls("queued-resources create")
    assert len(create) == 1
    assert "create job --project=p --zone=z-a --node-id=job --accelerator-type=v5p-16" in create[0]
    assert "--runtime-version=v2-alpha-tpuv5 " in create[0] and "--spot" not in create[0]
    (copy,) = cloud.calls("queued-resources scp")
    assert "launch/tpu_worker.sh" in copy and "ar_omni_jax.tgz job:" in copy and "--worker=all" in copy
    (setup,) = cloud.calls("tpu_worker.sh setup")
    assert "setup tar gs://bucket/run --config.data.path=gs://data/packed" in setup
    (train,) = cloud.calls("tpu_worker.sh train")
    words = "--config=configs/smoke.py --config.data.path=gs://data/packed --config.train.steps=5"
    assert f"gs://bucket/run {words}" in train
    for call in (copy, setup, train):  # else the hosts beyond 64 would start when the first 64 have finished
        assert "--node=all" in call and "--worker=all" in call and "--batch-size=all" in call
    assert (cloud.logs / "h0.log").read_text() == (cloud.logs / "h1.log").read_text() == "step 1\n"
    assert cloud.calls()[-1].startswith("compute tpus queued-resources delete job") and not cloud.exists
    assert not cloud.calls("storage"), "nothing in the bucket is touched"


def test_a_dry_run_prints_every_command_and_does_nothing(cloud):
    done = cloud.run(SCRIPT, "--config.seed=1", DRY_RUN=1, BRANCH=None)
    assert done.returncode == 0, done.stderr
    order = ["create job", "describe job", "tpu-vm describe job", "scp ", "setup", "train", "status", "delete job"]
    printed = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("gcloud ")]
    assert len(printed) == len(order)
    for word in order:
        assert any(word in line for line in printed), word
    assert "--config.seed=1" in done.stdout
    assert not cloud.calls()


def test_slices_prices_and_branches(cloud):
    variables = {"NODE_COUNT": 2, "PRICE": "spot", "ACCELERATOR_TYPE": "v6e-64", "VALID_UNTIL": "6h"}
    variables |= {"CREATE_FLAGS": "--internal-ips --network=own"}
    cloud.plan(train_1="printf 'status h%s ended 0\\n' 0 1 2 3 >status")
    done = cloud.run(SCRIPT, **variables)
    assert done.returncode == 0, done.stderr
    (create,) = cloud.calls("queued-resources create")
    assert "--node-count=2 --node-prefix=job --accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e" in create
    assert "--spot --valid-until-duration=6h --internal-ips --network=own" in create
    assert cloud.calls("tpu-vm describe job-0") and cloud.calls("tpu-vm describe job-1")
    assert cloud.calls("setup https://host/x.git#main") and not cloud.calls("ar_omni_jax.tgz")
    assert "training on 4 hosts" in done.stderr


def test_a_quota_error_ends_and_leaves_nothing(cloud):
    cloud.plan(refuse="ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5PPerProjectPerZone' has been exceeded\n")
    done = cloud.run(SCRIPT)
    assert done.returncode == 3
    assert "TPUV5PPerProjectPerZone" in done.stderr and "iam-admin/quotas?project=p" in done.stderr
    assert not cloud.exists and not cloud.calls("ssh")


def test_a_request_that_is_given_up_is_told_and_deleted(cloud):
    cloud.plan(life_1="CREATING\nWAITING_FOR_RESOURCES\nFAILED\n")
    done = cloud.run(SCRIPT)
    assert done.returncode == 3
    assert "job: WAITING_FOR_RESOURCES" in done.stderr and "no more capacity" in done.stderr
    assert cloud.calls("queued-resources delete") and not cloud.exists


def test_a_cloud_that_is_away_for_a_moment_now_and_then_costs_no_place_in_the_queue(cloud):
    cloud.plan(life_1="WAITING_FOR_RESOURCES\nAWAY\nAWAY\n" * 3 + "ACTIVE\n")
    done = cloud.run(SCRIPT, SSH_RETRIES=3)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources create")) == 1


def test_a_cloud_that_stays_away_is_told(cloud):
    cloud.plan(life_1="WAITING_FOR_RESOURCES\n" + "AWAY\n" * 4)
    done = cloud.run(SCRIPT, SSH_RETRIES=3)
    assert done.returncode == 3 and "does not say how job is" in done.stderr and "503" in done.stderr


def test_hosts_are_counted_or_nothing_is_started(cloud):
    """Half of the hosts would otherwise pass for all of them."""
    cloud.plan(hosts_fails="2", train_1="printf 'status h%s ended 0\\n' 0 1 2 3 >status")
    done = cloud.run(SCRIPT, NODE_COUNT=2)
    assert done.returncode == 0 and "training on 4 hosts" in done.stderr, done.stderr
    cloud.plan(hosts_fails="99")
    done = cloud.run(SCRIPT, NODE_COUNT=2, SSH_RETRIES=2)
    assert done.returncode == 3 and "how many hosts job has" in done.stderr
    assert len(cloud.calls("tpu_worker.sh train")) == 1 and not cloud.exists


def test_preempted_while_waiting_asks_again(cloud):
    cloud.plan(life_1="WAITING_FOR_RESOURCES\nPROVISIONING\nSUSPENDING\nSUSPENDED\n", life_2="PROVISIONING\nACTIVE\n")
    done = cloud.run(SCRIPT, PRICE="spot")
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources create")) == 2 and len(cloud.calls("queued-resources delete")) == 2
    assert len(cloud.calls("tpu_worker.sh train")) == 1


def test_preempted_while_training_installs_and_resumes_on_new_machines(cloud):
    # The connections to machines that are gone hang: only the state of the resource says so.
    cloud.plan(train_1="printf 'SUSPENDING\\nSUSPENDED\\n' >current; sleep 600")
    done = cloud.run(SCRIPT, PRICE="spot")
    assert done.returncode == 0, done.stderr
    assert "job was preempted: deleting it and asking again" in done.stderr
    kinds = [re.search(r"create|delete|setup|train ", line) for line in cloud.calls()]
    kinds = [match.group().strip() for match in kinds if match]
    assert kinds == ["create", "setup", "train", "delete", "create", "setup", "train", "delete"]


def test_a_host_that_cannot_be_reached_is_asked_again(cloud):
    cloud.plan(setup_fails="2")
    done = cloud.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("tpu_worker.sh setup")) == 3
    assert "installing failed on some host (2 of 5), again" in done.stderr


def test_a_host_that_is_never_reached_ends_the_job(cloud):
    cloud.plan(setup_fails="99")
    done = cloud.run(SCRIPT, SSH_RETRIES=2)
    assert done.returncode == 3
    assert "installing on the hosts of job failed 2 times" in done.stderr
    assert not cloud.exists and not cloud.calls("tpu_worker.sh train")


def test_a_broken_connection_joins_the_same_training_again(cloud):
    cloud.plan(train_1="printf 'status h%s running\\n' 0 1 >status; exit 255")
    done = cloud.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    first, second = cloud.calls("tpu_worker.sh train")
    assert first == second, "the same attempt: the hosts start nothing twice"
    assert len(cloud.calls("tpu_worker.sh setup")) == 1


def test_a_host_that_falls_silent_is_not_taken_for_success(cloud):
    cloud.plan(train_1="echo 'status h0 ended 0' >status")
    done = cloud.run(SCRIPT, SSH_RETRIES=2)
    assert done.returncode == 3
    assert "only 1 of 2 hosts answer" in done.stderr and not cloud.exists


def test_a_crash_restarts_training_on_the_same_machines(cloud):
    cloud.plan(train_1="printf 'status h0 ended 137\\nstatus h1 ended 75\\n' >status; exit 75")
    done = cloud.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources create")) == 1
    first, second = cloud.calls("tpu_worker.sh train")
    assert first != second, "another attempt: training starts again"


def test_crashes_without_end_give_up(cloud):
    crash = "printf 'status h%s ended 134\\n' 0 1 >status; exit 134"
    cloud.plan(train_1=crash, train_2=crash, train_3=crash)
    done = cloud.run(SCRIPT, MAX_RESTARTS=2)
    assert done.returncode == 3 and len(cloud.calls("tpu_worker.sh train")) == 3
    assert "training crashed 3 times" in done.stderr and not cloud.exists


def test_an_error_of_training_is_not_repeated(cloud):
    cloud.plan(train_1="echo '[h0] error: no key config.x'; printf 'status h%s ended 1\\n' 0 1 >status; exit 1")
    done = cloud.run(SCRIPT)
    assert done.returncode == 1 and len(cloud.calls("tpu_worker.sh train")) == 1
    assert "no key config.x" in done.stdout + done.stderr + (cloud.logs / "h0.log").read_text()
    assert not cloud.exists


def test_control_c_while_waiting_deletes_the_request(cloud):
    cloud.plan(life_1="WAITING_FOR_RESOURCES\n")
    process = cloud.start(SCRIPT)
    cloud.wait_for("describe", "state.state", times=3)
    control_c(process)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert cloud.calls("queued-resources delete") and not cloud.exists
    assert not cloud.calls("tpu_worker.sh stop")


def test_control_c_while_training_saves_then_deletes(cloud):
    cloud.plan(train_1=TRAINS_UNTIL_STOPPED)
    process = cloud.start(SCRIPT)
    cloud.wait_for("tpu_worker.sh train")
    control_c(process)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    calls = cloud.calls()
    stop = next(i for i, line in enumerate(calls) if "tpu_worker.sh stop 5" in line)
    delete = next(i for i, line in enumerate(calls) if "queued-resources delete" in line)
    assert stop < delete and not cloud.exists


def test_a_second_control_c_deletes_at_once(cloud):
    cloud.plan(train_1=TRAINS_UNTIL_STOPPED, stop_hangs="")
    process = cloud.start(SCRIPT, STOP_SECONDS=600)
    cloud.wait_for("tpu_worker.sh train")
    control_c(process)
    cloud.wait_for("tpu_worker.sh stop")
    control_c(process)
    output, _ = process.communicate(timeout=60)
    (cloud.folder / "stopped").touch()
    assert process.returncode == 130, output
    assert cloud.calls("queued-resources delete") and not cloud.exists


def test_control_c_with_keep_leaves_everything_running(cloud):
    cloud.plan(train_1=TRAINS_UNTIL_STOPPED)
    process = cloud.start(SCRIPT, KEEP=1)
    cloud.wait_for("tpu_worker.sh train")
    control_c(process)
    output, _ = process.communicate(timeout=60)
    (cloud.folder / "stopped").touch()  # ends the host's part of the play
    assert process.returncode == 130, output
    assert cloud.exists and not cloud.calls("tpu_worker.sh stop") and not cloud.calls("delete")
    assert "is kept and costs money" in output


def test_the_same_command_joins_a_training_that_runs_and_deletes_its_own_resource(cloud):
    cloud.plan(current="ACTIVE\n", label="run\n", status="status h0 running\nstatus h1 running\n")
    done = cloud.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert not cloud.calls("queued-resources create") and not cloud.calls("tpu_worker.sh setup")
    assert cloud.calls("tpu_worker.sh train") and not cloud.exists


def test_a_resource_of_somebody_else_is_used_and_never_deleted(cloud):
    cloud.plan(current="ACTIVE\n", label="\n")
    done = cloud.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert cloud.calls("tpu_worker.sh train") and cloud.exists
    cloud.plan(current="SUSPENDED\n")
    done = cloud.run(SCRIPT)
    assert done.returncode == 3 and "was not made by this script" in done.stderr and cloud.exists


def test_what_somebody_deletes_is_not_asked_for_again(cloud):
    cloud.plan(train_1="rm current; sleep 600")
    done = cloud.run(SCRIPT)
    assert done.returncode == 3 and "was deleted by somebody" in done.stderr
    assert len(cloud.calls("queued-resources create")) == 1


def test_words_beside_an_answer_do_no_harm(cloud):
    """gcloud tells of its updates on the standard error."""
    program = Path(cloud.path.split(":")[0]) / "gcloud"
    program.write_text(program.read_text().replace("next() {", "echo Updates are available. >&2\nnext() {", 1))
    done = cloud.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources create")) == 1 and not cloud.exists


def test_no_rights_are_told_instead_of_waiting_for_ever(cloud):
    cloud.plan(denied="")
    done = cloud.run(SCRIPT, SSH_RETRIES=2)
    assert done.returncode == 3 and "PERMISSION_DENIED" in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PROJECT": None, "ZONE": None}, "set PROJECT ZONE"),
        ({"ACCELERATOR_TYPE": "v5e-256"}, "the cloud calls it v5litepod-256"),
        ({"ACCELERATOR_TYPE": "v9-8"}, "set RUNTIME_VERSION"),
        ({"WORKDIR": "runs/here"}, "must be gs://BUCKET/FOLDER"),
        ({"WORKDIR": "gs://bucket"}, "must be gs://BUCKET/FOLDER"),
        ({"PRICE": "cheap"}, "must be on-demand, spot or reserved"),
        ({"NODE_COUNT": "two"}, "NODE_COUNT=two must be a number"),
        ({"NODE_COUNT": "08"}, "NODE_COUNT=08 must be a number"),
        ({"NAME": "My_Job"}, "lower-case letters"),
        ({"MAX_RESTARTS": "many"}, "MAX_RESTARTS=many must be a number"),
        ({"SSH_RETRIES": "0"}, "SSH_RETRIES=0 must be a number of at least 1"),
        ({"STOP_SECONDS": "5m"}, "STOP_SECONDS=5m must be a number of at least 1"),
        ({"POLL": "often"}, "POLL=often must be seconds"),
        ({"CONFIG": "configs/none.py"}, "is no file of this checkout"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_is_asked_for(cloud, variables, message):
    done = cloud.run(SCRIPT, **variables)
    assert done.returncode == 2 and message in done.stderr
    assert not cloud.calls()


def test_the_packed_checkout_holds_what_a_host_needs(cloud, tmp_path):
    taken = tmp_path / "taken.tgz"
    cloud.plan()
    program = Path(cloud.path.split(":")[0]) / "gcloud"
    copies = f'case "$*" in *scp*) for w in "$@"; do case $w in *.tgz) cp "$w" {taken} ;; esac; done ;; esac\ncase'
    program.write_text(program.read_text().replace("case", copies, 1))
    assert cloud.run(SCRIPT, BRANCH=None).returncode == 0
    names = subprocess.run(["tar", "-tzf", taken], capture_output=True, text=True, check=True).stdout.splitlines()
    for name in ("setup.py", "ar_omni_jax/main.py", "data_pipelines/loader.py", "launch/environment.sh", "README.md"):
        assert name in names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "runs/"))]
