#!/bin/sh
# Prints what became of a job of Kubernetes, as snakemake asks for it: running, success or failed (profile.yaml).
told='jsonpath={.metadata.name} {.status.conditions[?(@.status=="True")].type}'
if ! said=$(kubectl get "$1" --ignore-not-found -o "$told" 2>&1); then
    echo "$said" >&2
    case $said in
        # A no that stays one: to call this running would be to wait for ever.
        *Forbidden* | *forbidden* | *Unauthorized* | *"logged in"*) echo failed ;;
        *) echo running ;; # nobody answered, which says nothing of the job: snakemake asks again
    esac
    exit
fi
case $said in
    "") echo failed ;; # it is gone
    *" "*Complete*) echo success ;;
    *" "*Failed*) echo failed ;;
    *) echo running ;;
esac
