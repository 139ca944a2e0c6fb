import sys

print("ready", file=sys.stdout)


def load(names, seconds=30):
    """Imports what these distributions offer, within so many seconds, and leaves no file that can be seen."""
    import importlib, io, os, shutil, time
    from importlib.metadata import PackageNotFoundError, distribution

    def offered(name):
        try:
            found = distribution(name)
        except PackageNotFoundError:
            return []
        listed = (found.read_text("top_level.txt") or "").split()
        if not listed:
            for path in found.files or ():
                if path.suffix == ".py" and len(path.parts) == 1:
                    listed.append(path.stem)
                elif path.name == "__init__.py" and len(path.parts) == 2:
                    listed.append(path.parts[0])
        # What a package brings for its own making is nobody's to import.
        return [top for top in listed if top.isidentifier() and top[0] != "_" and top not in ("test", "tests", "docs")]

    def visible(place):
        return {entry for entry in os.listdir(place) if not entry.startswith(".")}

    until, places = time.monotonic() + seconds, ("/home/user", "/tmp")
    before = {place: visible(place) for place in places}
    streams, sys.stdout, sys.stderr = (sys.stdout, sys.stderr), io.StringIO(), io.StringIO()
    try:
        for top in [top for name in names for top in offered(name)]:
            if time.monotonic() < until:
                try:
                    importlib.import_module(top)
                except BaseException:
                    pass
    finally:
        sys.stdout, sys.stderr = streams
    for place in places:
        for entry in visible(place) - before[place]:
            path = os.path.join(place, entry)
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.remove(path)


