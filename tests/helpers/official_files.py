"""Official label files, made small."""

AVA_LINES = ["1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396", "2 953958 10 7 15 26 26 21 10 8 1 2 15 21 1396",
             "3 954184 0 0 4 8 41 56 10 3 4 4 0 0 1396"]  # fmt: skip


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
