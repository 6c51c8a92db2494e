"""Keys in the environment (never printed), and access to pinned and gated models."""

import os

from perfmis.checks import weights
from perfmis.checks.finding import Finding
from perfmis.config import Study
from perfmis.stage import UserError


def keys(study: Study) -> list[Finding]:
    """Return whether the environment holds the key of each server."""
    findings = []
    for key, server in study.servers.items():
        try:
            server.secret()
            findings.append(Finding("ok", key, f"{server.variable} is set"))
        except UserError as error:
            findings.append(Finding("FAIL", key, str(error)))
    return findings


def hub(study: Study) -> list[Finding]:
    """Return whether each pinned model is in the hub cache or may be fetched; the first failed connection ends it."""
    findings: list[Finding] = []
    missing = {}
    for key, (name, revision) in weights.hub_models(study).items():
        if weights.folder(name, revision, None):
            findings.append(Finding("ok", key, f"{name} is in the hub cache"))
        else:
            missing[key] = (name, revision)
    for key, (name, revision) in missing.items():
        finding = _asked(key, name, revision)
        if finding is None:
            text = f"no connection to the hub; {', '.join(missing)} not checked and not in {weights.cache()}"
            return [*findings, Finding("warning", "hub", f"{text}: connect, or copy the cache here before the run")]
        findings.append(finding)
    return findings


def _asked(key: str, name: str, revision: str) -> Finding | None:
    """Return what the hub says of a model; None without a connection."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        api.auth_check(name)
        api.model_info(name, revision=revision, timeout=20)
    except GatedRepoError:
        fix = f"accept its licence at https://huggingface.co/{name} and export HF_TOKEN of that account"
        return Finding("FAIL", key, f"{name} is gated, and this account may not read it; {fix}")
    except RevisionNotFoundError:
        return Finding("FAIL", key, f"{name} has no commit {revision}; correct {key}.revision")
    except RepositoryNotFoundError:
        return Finding("FAIL", key, f"{name} does not exist or is private; correct {key}.hub or export HF_TOKEN")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        return Finding("warning", key, f"{name}: the hub answered {status}; try again") if status else None
    except Exception:  # the hub's library lets errors of whichever HTTP client it uses through
        return None
    return Finding("ok", key, f"{name} can be fetched")
