#!/bin/sh
# Prints what became of a job of Kubernetes, as snakemake asks for it: running, success or failed (profile.yaml).
told='jsonpath={.metadata.name} {.status.conditions[?(@.status=="True")].type}'
if ! said=$(kubectl get "$1" --ignore-not-found -o "$told"); then
    echo running # nobody answered, which says nothing of the job: snakemake asks again
    exit
fi
case $said in
    "") echo failed ;; # it is gone
    *" "*Complete*) echo success ;;
    *" "*Failed*) echo failed ;;
    *) echo running ;;
esac
