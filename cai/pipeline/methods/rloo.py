"""RLOO (arXiv 2402.14740): as GRPO, but with the KL to the reference in the reward."""

from dataclasses import replace

from cai.pipeline.methods import grpo

METHOD = replace(grpo.METHOD, name="rloo")
