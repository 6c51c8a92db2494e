#!/usr/bin/env bash
# Starts a Slurm cluster of three nodes on this machine, for tests: tests/slurm/up.sh FOLDER [accounting]
#
# Needs root and, on Debian or Ubuntu, `apt-get install slurm-wlm munge`. FOLDER gets state and logs; down.sh stops it.
# With accounting, sacct answers and there is an account `study`; this also needs slurmdbd and mariadb-server.
# Its configuration has to stand in /etc/slurm, because job steps of Snakemake's plug-in drop SLURM_CONF. Where another
# configuration stands there, this is a real cluster's machine, and the script ends without touching it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "$#:${2:-}" in 1: | 2:accounting) ;; *) echo "usage: up.sh FOLDER [accounting]" >&2; exit 2 ;; esac
accounting=${2:-}
[ "$(id -u)" = 0 ] || { echo "needs root: Slurm's daemons start jobs as other users" >&2; exit 3; }
for program in slurmctld slurmd munged sbatch ${accounting:+slurmdbd mariadbd}; do
    command -v "$program" > /dev/null || {
        echo "no $program: apt-get install slurm-wlm munge${accounting:+ slurmdbd mariadb-server}" >&2
        exit 3
    }
done
for name in slurm gres slurmdbd; do
    file=/etc/slurm/$name.conf
    if [ -e "$file" ] && ! grep -q '^# .*\(tests/test_slurm.py\|Pretend GPUs\|for these tests\)' "$file"; then
        echo "$file is another cluster's: not touched" >&2
        exit 3
    fi
done
if [ -e /etc/slurm/slurm.conf ] && scontrol ping 2> /dev/null | grep -q "is UP"; then
    echo "a cluster is up already: stop it by tests/slurm/down.sh $(dirname "$(readlink /etc/slurm/slurm.conf)")" >&2
    exit 3
fi

mkdir -p "$1/state" /etc/slurm
folder=$(cd "$1" && pwd)
for gpu in 0 1 2 3 4 5 6 7; do
    [ -e "$folder/nvidia$gpu" ] || mknod "$folder/nvidia$gpu" c 1 3
done
for name in slurm gres ${accounting:+slurmdbd}; do
    sed -e "s|@FOLDER@|$folder|" -e "s|@HOST@|$(hostname -s)|" "$here/$name.conf" > "$folder/$name.conf"
    chmod 600 "$folder/$name.conf"
    ln -sfn "$folder/$name.conf" "/etc/slurm/$name.conf"
done

# Packages install munge's key; its service does not start in containers.
if ! munge --no-input 2> /dev/null | unmunge > /dev/null 2>&1; then
    install -d -o munge -g munge -m 755 /run/munge
    install -d -o munge -g munge -m 700 /var/log/munge
    runuser -u munge -- "$(command -v munged)"
    touch "$folder/munged"
fi

if [ "$accounting" ]; then
    sed -i 's|^AccountingStorageType=.*|AccountingStorageType=accounting_storage/slurmdbd|' "$folder/slurm.conf"
    printf '%s\n' AccountingStorageHost=localhost AccountingStoragePort=16819 AccountingStoreFlags=job_comment \
        AccountingStorageEnforce=associations >> "$folder/slurm.conf"
    mariadb-install-db --user=root --datadir="$folder/mysql" > "$folder/mysql.log" 2>&1
    setsid mariadbd --no-defaults --user=root --datadir="$folder/mysql" --socket="$folder/mysql.sock" \
        --pid-file="$folder/mysql.pid" --bind-address=127.0.0.1 --port=13306 >> "$folder/mysql.log" 2>&1 < /dev/null &
    database() { mariadb --no-defaults --socket="$folder/mysql.sock" --execute "$1"; }
    until database 'select 1' > /dev/null 2>&1; do sleep 0.2; done
    database "create database accounting; create user slurm@'127.0.0.1' identified by 'slurm'"
    database "grant all on accounting.* to slurm@'127.0.0.1'"
    slurmdbd
    until sacctmgr --noheader show cluster > /dev/null 2>&1; do sleep 0.2; done
    sacctmgr --immediate add cluster perfmis > /dev/null
    sacctmgr --immediate add account study > /dev/null
    sacctmgr --immediate add user root account=study > /dev/null
fi
slurmctld -c
for node in gpu1 gpu2 cpu1; do
    mkdir -p "$folder/spool-$node"
    slurmd -c -N "$node"
done
for _ in $(seq 120); do
    if [ "$(sinfo --noheader --format %T 2> /dev/null | sort -u)" = idle ]; then
        exit 0
    fi
    sleep 0.5
done
echo "nodes did not come up; see $folder/*.log" >&2
exit 1
