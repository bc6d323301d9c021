#!/usr/bin/env bash
# A real SLURM cluster of one node, in a temporary folder, from Debian's packages: spreads a small study over an array
# of jobs, requeues them in the middle of a run, and compares the tables with those of a study run here.
#
#   bash scripts/try_slurm.sh [STUDY]        needs root; leaves nothing running. STUDY: default smoke
#
# The packages, if they are missing: apt-get install slurmctld slurmd slurm-client munge
set -euo pipefail
cd "$(dirname "$0")/.."
STUDY="${1:-smoke}"
PYTHON="${PYTHON:-.venv/bin/python}"
[ "$(id -u)" = 0 ] || { echo "error: munged and slurmd need root" >&2; exit 2; }
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" > /dev/null || { echo "error: no $program: apt-get install slurmctld slurmd slurm-client munge" >&2; exit 2; }
done
"$PYTHON" -c "import submitit" || { echo "error: no submitit: pip install 'hf-optim[slurm]'" >&2; exit 2; }

DIR="$(mktemp -d)"
chmod 755 "$DIR"
mkdir "$DIR/munge" "$DIR/state" "$DIR/spool"
HOST="$(hostname -s)"
export SLURM_CONF="$DIR/slurm.conf" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Jobs inherit the environment; a variable of an allocation that this script might itself run in must not confuse them.
unset SLURM_JOB_ID SLURM_JOBID || true

stop() {
  set +e
  scancel --user=root 2> /dev/null
  for daemon in slurmd slurmctld munged; do
    [ -f "$DIR/$daemon.pid" ] && kill "$(cat "$DIR/$daemon.pid")" 2> /dev/null
  done
  sleep 2
  [ "${KEEP:-}" ] && echo "kept: $DIR" || rm -rf "$DIR"
}
trap stop EXIT

dd if=/dev/urandom of="$DIR/munge/key" bs=1 count=1024 status=none
chmod 600 "$DIR/munge/key"
munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
  --log-file="$DIR/munged.log" --seed-file="$DIR/munge/seed"

cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldParameters=enable_configless
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
cat > "$DIR/cgroup.conf" <<CONF
CgroupPlugin=cgroup/v1
CONF
slurmctld -c
slurmd -c
for _ in $(seq 60); do
  [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ] && break
  sleep 1
done
sinfo
[ "$(sinfo --noheader --format=%t)" = idle ] || { tail -20 "$DIR/slurmctld.log" "$DIR/slurmd.log"; exit 1; }

echo "== the study on this machine"
"$PYTHON" -m hf_optim.commands.main study "$STUDY" --output "$DIR/here"

echo "== the same study by an array of two SLURM jobs"
"$PYTHON" -m hf_optim.commands.main study "$STUDY" --output "$DIR/spread" --launch slurm --array 2 --time 60 --checkpoint-every 20 &
LAUNCHER=$!
# A run is in progress when its folder has a log or more and no record.
finished() { find "$DIR/spread/runs" -name record.json 2> /dev/null | wc -l; }
busy() {
  for home in "$DIR"/spread/runs/*/; do
    [ -d "$home" ] && [ ! -f "$home/record.json" ] && [ -n "$(ls "$home")" ] && return 0
  done
  return 1
}
until [ "$(finished)" -gt 0 ] && busy; do
  kill -0 "$LAUNCHER" || exit 1
  sleep 0.1
done
for job in $(squeue --noheader --states=RUNNING --format=%i); do
  echo "== scontrol requeue $job, with $(finished) runs finished"
  scontrol requeue "$job"
done
sleep 8
squeue --format="%i %T %r %S" || true # SLURM holds a requeued job back for two minutes
before="$(cd "$DIR/spread/runs" && md5sum */record.json)"
wait "$LAUNCHER"
(cd "$DIR/spread/runs" && md5sum --quiet --check <<< "$before") && echo "== records from before the requeue: untouched"
for log in "$DIR"/spread/jobs/*_log.out; do
  echo "== $(basename "$log"): started $(grep -c "Starting with" "$log") times, $(grep -c '^ok ' "$log") runs told"
done

for file in table.md table.csv runs.csv; do
  cmp "$DIR/here/$file" "$DIR/spread/$file" && echo "== $file: the same bytes"
done
