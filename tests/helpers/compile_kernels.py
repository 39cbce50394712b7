"""A program: compile Triton kernels for a GPU that is not there, and print what each occupies.

Its words: the kernels' file, the GPU's capability (90), and as JSON a list of [kernel, the values' type, settings]. It
prints a list of [registers, bytes of stack, bytes of shared memory]. Triton's interpreter would be in the way here.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def compile_kernel(kernel, capability, dtype, num_warps=4, **settings):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    kinds = dict.fromkeys(names, "i32") | dict.fromkeys(settings, "constexpr")
    float32 = {"table", "positions", "grad_table", "grad_positions", "grad_features", "features"} & set(names)
    kinds |= dict.fromkeys(float32, "*fp32") | dict.fromkeys({"out", "grad"} & set(names), f"*{dtype}")
    aligned = [number for number, name in enumerate(names) if kinds[name][0] == "*" or "stride" in name]
    source = ASTSource(
        kernel,
        kinds,
        {(names.index(name),): value for name, value in settings.items()},
        {(number,): [["tt.divisibility", 16]] for number in aligned},
    )
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": num_warps})
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([dump, "--dump-resource-usage", file.name], capture_output=True, text=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups()
    return int(registers), int(stack), compiled.metadata.shared


if __name__ == "__main__":
    path, capability, cases = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("compiled_kernels", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    found = [
        compile_kernel(getattr(module, name), int(capability), dtype, **settings)
        for name, dtype, settings in json.loads(cases)
    ]
    print(json.dumps(found))
