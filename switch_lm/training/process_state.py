"""Restores the process-wide settings that a run or a command changes, however it ends."""

import logging
import multiprocessing
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

LOGGERS = ("", "switch_lm", "lightning", "lightning.pytorch", "lightning.fabric", "matplotlib")


@contextmanager
def restored() -> Iterator[None]:
    """Restores what a process has one of: threads, random numbers, torch's modes, warnings, logs and environment.

    A GPU that is not in use at the start of the block has no random state to restore.
    """
    logs = [(log, log.level, log.propagate, list(log.handlers)) for log in map(logging.getLogger, LOGGERS)]
    threads, environment = torch.get_num_threads(), dict(os.environ)
    start_method = multiprocessing.get_start_method(allow_none=True)  # Lightning fixes it where it is still open
    randomness = random.getstate(), np.random.get_state()
    of_torch = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus), warnings.catch_warnings():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(of_torch[0])
            torch.set_grad_enabled(of_torch[1])
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
            torch.autograd.set_detect_anomaly(*anomaly)
            random.setstate(randomness[0])
            np.random.set_state(randomness[1])
            multiprocessing.set_start_method(start_method, force=True)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update({name: text for name, text in environment.items() if os.environ.get(name) != text})
            for log, level, propagate, handlers in logs:
                log.setLevel(level)
                log.propagate, log.handlers = propagate, handlers
