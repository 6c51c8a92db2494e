#!/bin/sh
# Deletes jobs of Kubernetes, and with them their pods; snakemake calls it when it is stopped (profile.yaml).
exec kubectl delete --ignore-not-found --wait=false "$@"
