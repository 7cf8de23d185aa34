"""Manifests for KubeRay: one run with its cluster, or a cluster that stays."""

from dopsd.kuberay.job import Job, documents

__all__ = ["Job", "documents"]
