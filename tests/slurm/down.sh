#!/usr/bin/env bash
# Cancels the jobs of the cluster that up.sh started with the same FOLDER, and stops it: tests/slurm/down.sh FOLDER
set -uo pipefail
[ $# = 1 ] || { echo "usage: down.sh FOLDER" >&2; exit 2; }
folder=$(cd "$1" && pwd)
[ "$(readlink /etc/slurm/slurm.conf)" = "$folder/slurm.conf" ] || { echo "$folder: no cluster is up" >&2; exit 2; }

squeue --noheader --format %i | xargs --no-run-if-empty scancel --signal KILL
for _ in $(seq 40); do
    [ -z "$(squeue --noheader --states RUNNING,COMPLETING)" ] && break
    sleep 0.25
done
for file in "$folder"/slurmd-*.pid "$folder"/slurmctld.pid "$folder"/slurmdbd.pid "$folder"/mysql.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2> /dev/null
    for _ in $(seq 40); do
        [ -s "/proc/$pid/cmdline" ] || break # a dead process that nobody waited for has none
        sleep 0.25
    done
    kill -KILL "$pid" 2> /dev/null
done
if [ -e "$folder/munged" ]; then
    kill "$(cat /run/munge/munged.pid)"
    rm "$folder/munged"
fi
rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf /etc/slurm/slurmdbd.conf
