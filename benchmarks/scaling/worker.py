"""A process that measures a step: python -m benchmarks.scaling.worker SPEC.

SPEC is a `scaling.Spec` as JSON. The process prints what it measured as a line
of JSON. Everything that JAX reads when it starts is set before it is imported.
"""

import json
import os
import sys


def prepare(core: int | None, devices: int) -> None:
    """Binds the process to a core, and asks for fake devices where JAX has a CPU."""
    flags = [os.environ.get("XLA_FLAGS", "")]
    if core is not None:
        os.sched_setaffinity(0, {core})  # the threads that JAX starts get no other
        os.environ["JAX_PLATFORMS"] = "cpu"
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"
        flags.append("--xla_cpu_multi_thread_eigen=false")
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    os.environ["XLA_FLAGS"] = " ".join(flags)


def main(text: str) -> None:
    """Measures what the text says."""
    values = json.loads(text)
    prepare(values["core"], values["devices"] // values["processes"])
    import jax

    from benchmarks.scaling import measure as scaling

    spec = scaling.Spec(**values)
    if spec.processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{spec.port}", spec.processes, spec.process
        )
    print(json.dumps(scaling.measure(spec)), flush=True)
    if spec.processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
