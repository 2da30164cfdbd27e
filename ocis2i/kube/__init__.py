"""Builds in a cluster: manifests for Kubernetes and what runs on it, and a build run by a Job.

All but `cluster` is pure: plain data in, plain data out.
"""
