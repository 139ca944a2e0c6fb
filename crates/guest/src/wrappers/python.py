"""The Python interpreter: reads executions from the control socket, runs each in `__main__`, reports its exit code.

The program's `__main__` is a module of its own, which lives from execution to execution; nothing of this file is in it, and no
frame of this file is in a traceback. An execution lasts until its non-daemon threads have ended, as a script does. After the last
one the interpreter ends as a script's does: functions registered with atexit run, and its exit code is the program's. Its process waits
to be ended, because it is the agent that has something left to do.

A rehearsal runs in a `__main__` of its own that ends with it, and does not count. What it imports stays imported.

A program may replace whatever it reaches by name. So this file has built-ins of its own, takes functions from modules before the first
program runs, and makes whole before each execution what the one before it may have closed or replaced of the standard streams.
"""

__builtins__ = dict(vars(__builtins__))  # for every function below

import linecache
import os
import sys
from _random import Random
from _signal import setitimer
from _thread import _count as count_other_threads
from atexit import _run_exitfuncs as run_exit_functions
from fcntl import F_DUPFD_CLOEXEC, fcntl
from gc import collect, freeze, get_objects
from os import O_RDONLY, _exit, chdir, close, dup2, environb, fstat, getcwdb, getpid, read
from os import open as open_fd
from os import register_at_fork, set_blocking, set_inheritable, write
from sys import _current_frames, getprofile, gettrace, modules, setprofile, setrecursionlimit, settrace

CONTROL_FD = 1000
HOME = os.environ["HOME"]
WORKERS = os.path.join(os.path.dirname(__file__), "python_workers.py")
# ast.PyCF_ALLOW_TOP_LEVEL_AWAIT and inspect.CO_COROUTINE, without importing either module.
ALLOW_TOP_LEVEL_AWAIT = 0x2000
CO_COROUTINE = 0x80
# What a shell reports of a program that SIGINT ended.
INTERRUPTED = 130
# Between two looks at a thread pool that is still at work after its program.
POOL_STEP_SECONDS = 0.005
# With less, not even this file's calls fit on the stack.
MIN_RECURSION_LIMIT = 200
# Most programs are read at once.
PIECE_BYTES = 65536
REHEARSAL = "main-0.py"
# Types whose instances end without a sound.
DATA = {dict, frozenset, list, set, tuple, type(lambda: None)}
# How a report ends, for each exit code.
REPORT_ENDS = [b" %d\n" % code for code in range(256)]
RECURSION_LIMIT = sys.getrecursionlimit()
fromhex = bytes.fromhex
PathFinder = modules["_frozen_importlib_external"].PathFinder
show_by_default = sys.__excepthook__


class Streams:
    """The standard streams, as they were at the start."""

    def __init__(self):
        # Out of the way of what a program opens, and for no child.
        self.kept = [fcntl(fd, F_DUPFD_CLOEXEC, CONTROL_FD + 1) for fd in range(3)]
        self.files = [identity(fd) for fd in range(3)]
        self.objects = [sys.stdin, sys.stdout, sys.stderr]
        self.objects[1].reconfigure(line_buffering=True)

    def restore(self):
        for fd in range(3):
            if identity(fd) != self.files[fd]:
                dup2(self.kept[fd], fd)
            set_blocking(fd, True)
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            stream = self.objects[fd]
            if not self.is_whole(stream, fd):
                stream = self.objects[fd] = self.reopen(fd)
            setattr(sys, name, stream)
            setattr(sys, "__%s__" % name, stream)

    def is_whole(self, stream, fd):
        try:
            return not stream.closed and stream.fileno() == fd
        except BaseException:
            return False  # detached

    def reopen(self, fd):
        mode, errors = ("r" if fd == 0 else "w"), ("backslashreplace" if fd == 2 else "strict")
        return open(fd, mode, 1 if fd else -1, "utf-8", errors, closefd=False)

    def flush(self):
        _, stdout, stderr = self.objects
        for stream in (stdout, stderr, sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                pass  # closed, replaced, or its reader is gone: the program's own business


class Workers:
    """Tells multiprocessing how to hand over what a program defined, once it is imported."""

    NAMES = ("multiprocessing.reduction", "multiprocessing.spawn")

    def find_spec(self, name, path=None, target=None):
        if name not in self.NAMES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_teach(module):
                execute(module)
                self.teach(module)

            spec.loader.exec_module = execute_and_teach
        return spec

    def teach(self, module):
        scope = {"__name__": "python_workers", "__file__": WORKERS}
        with open(WORKERS, "rb") as file:
            exec(compile(file.read(), WORKERS, "exec"), scope)
        scope["teach"](module)


class Interpreter:
    def __init__(self):
        self.pid = getpid()
        self.main = type(sys)("__main__")
        self.main.__builtins__ = modules["builtins"]
        self.given = dict(self.main.__dict__)
        self.executions = 0
        self.is_last = False
        self.runner = None
        self.buffer = b""
        self.streams = Streams()

    def serve(self):
        set_inheritable(CONTROL_FD, False)
        register_at_fork(after_in_child=self.leave)
        modules["__main__"] = self.main
        sys.meta_path.insert(0, Workers())
        sys.argv = ["main.py"]
        sys.path[0] = HOME
        self.run("print(end='')", "<warm-up>")
        freeze()
        self.say(b"ready\n", 1)
        while True:
            verb, token, argument = self.read_order()
            if verb == b"seed":
                self.reseed(argument)
                self.say(b"\nseeded " + token + b"\n", 1)
                continue
            if verb == b"rehearse":
                code = self.rehearse(argument)
            elif verb == b"last" or verb == b"exec":
                self.is_last = verb == b"last"
                self.executions += 1
                code = self.execute(argument, "main.py" if self.executions == 1 else "main-%d.py" % self.executions)
            else:
                _exit(70)
            if self.is_last:
                self.end()
            self.streams.flush()
            if getpid() != self.pid:
                _exit(code)  # a copy that the program forked: the end of its program is the end of it
            self.say(b"\ndone " + token + REPORT_ENDS[code], code)
            if self.is_last:
                self.await_end(code)

    def end(self):
        """As at the end of a script: threads, exit functions, then what the program made. The interpreter itself is not taken apart: that
        takes longer than most programs do, and nothing of it is the program's."""
        try:
            if "threading" in modules:
                modules["threading"]._shutdown()
            run_exit_functions()
            names, given = self.main.__dict__, self.given
            made = [name for name in names if names[name] is not given.get(name)]
            if made:
                # In the order of the interpreter's own end: what is marked as private goes first.
                for name in [*filter(is_private, made), *made]:
                    names[name] = None
            if holds_more_than_data():
                collect()
        except BaseException:
            pass  # a program replaced what this stands on

    def await_end(self, code):
        """Ending takes the processor from the agent, which has somebody to tell; so this waits until it is ended, or the agent is gone."""
        try:
            read(CONTROL_FD, 1)
        finally:
            _exit(code)

    def leave(self):
        """In a forked copy: what it would read from the control socket is not meant for it."""
        try:
            close(CONTROL_FD)
        except OSError:
            pass

    def read_order(self):
        """Its verb, its token and its argument, each of which is a line."""
        while True:
            lines = self.buffer.split(b"\n", 3)
            if len(lines) == 4:
                self.buffer = lines.pop()
                return lines
            try:
                piece = read(CONTROL_FD, 4096)
            except OSError:
                piece = b""
            except BaseException:
                continue  # raised by a signal's handler: meant for a program, which has ended
            if not piece:
                _exit(0)  # the agent is gone
            self.buffer += piece

    def say(self, line, code):
        while True:
            try:
                write(CONTROL_FD, line)
                return
            except OSError:
                _exit(code)  # the program closed the socket: then its end is the interpreter's end
            except BaseException:
                pass  # a signal's handler; a report that is said twice does not count twice

    def rehearse(self, directory):
        main, runner, variables, place = self.main, self.runner, dict(environb), getcwdb()
        self.main, self.runner = type(sys)("__main__"), None
        self.main.__builtins__ = main.__builtins__
        try:
            return self.execute(directory, REHEARSAL)
        finally:
            self.end_loop()
            self.main.__dict__.clear()
            self.main, self.runner = main, runner
            modules["__main__"] = main
            linecache.cache.pop(REHEARSAL, None)
            if environb != variables:
                environb.clear()
                environb.update(variables)
            chdir(place)
            # What refers to itself would outlive the rehearsal, and end in somebody's program.
            collect()
            # What is loaded by now is no program's, so it need not be looked through when one's is collected.
            freeze()

    def end_loop(self):
        if self.runner is not None:
            self.runner.close()
            events = modules["asyncio.events"]
            # That there was a loop is remembered by the policy, and then none is made for who asks without one.
            getattr(events, "_set_event_loop_policy", events.set_event_loop_policy)(None)

    def reseed(self, seed):
        """In a copy of a machine: what is drawn from here on is not what other copies draw. Modules that are not there need nothing."""
        try:
            if "random" in modules:
                # Its own `seed` takes a number as it is, but comes to that by ways of its own.
                generator = modules["random"]._inst
                Random.seed(generator, int(seed[:32], 16))
                generator.gauss_next = None
            if "numpy.random" in modules:
                modules["numpy.random"].seed(list(fromhex(seed[32:].decode())))
            if "_ssl" in modules:
                modules["_ssl"].RAND_add(seed, len(seed) / 2)
        except BaseException:
            _exit(70)  # a program broke what this stands on: another interpreter is better than a copy

    def execute(self, directory, name):
        code, saved = 1, {}
        try:
            self.make_whole()
            source = contents(directory + b"/code")
            saved = self.apply_environment(directory)
            code = self.end_threads(self.run(source, name))
        except BaseException as error:
            show_by_default(type(error), error, None)
        finally:
            if saved:
                self.restore_environment(saved)
        return code

    def make_whole(self):
        """Undoes what a program did to the interpreter and no later one can want."""
        if self.executions > 1:  # before the first there was none
            self.end_timers()
            try:
                self.streams.restore()
            except BaseException:
                pass  # even the hidden copies are closed: what is left is this program's
        modules["sys"], modules["builtins"], modules["__main__"] = sys, self.main.__builtins__, self.main
        # A module may have been uploaded since, within one tick of the directory's time stamp.
        sys.path_importer_cache.pop(HOME, None)

    def end_timers(self):
        """A timer's signal ends with the program that set it, as it would with a script."""
        try:
            for timer in range(3):
                setitimer(timer, 0)
        finally:
            for timer in range(3):
                setitimer(timer, 0)

    def apply_environment(self, directory):
        pairs, saved = contents(directory + b"/env"), {}
        if not pairs:
            return saved
        for pair in pairs.split(b"\0"):
            variable, found, value = pair.partition(b"=")
            if found:
                saved[variable] = environb.get(variable)
                environb[variable] = value
        return saved

    def restore_environment(self, saved):
        for variable, value in saved.items():
            if value is None:
                environb.pop(variable, None)
            else:
                environb[variable] = value

    def run(self, source, name):
        program = None
        try:
            try:
                program = compile(source, name, "exec", ALLOW_TOP_LEVEL_AWAIT, True)
                if name != "<warm-up>":
                    self.remember(source, name)
                if program.co_flags & CO_COROUTINE:
                    self.run_coroutine(eval(program, self.main.__dict__))
                else:
                    exec(program, self.main.__dict__)
            finally:
                if gettrace() is not None:
                    settrace(None)
                if getprofile() is not None:
                    setprofile(None)
                if not self.is_last:
                    self.end_timers()
                if sys.getrecursionlimit() < MIN_RECURSION_LIMIT:
                    setrecursionlimit(RECURSION_LIMIT)
        except SystemExit as exit:
            return self.exit_code(exit.code)
        except BaseException as error:
            self.report(error, program)
            return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        return 0

    def run_coroutine(self, coroutine):
        import asyncio

        if self.runner is None:
            self.runner = asyncio.Runner()
        self.runner.run(coroutine)

    def remember(self, source, name):
        """Lets tracebacks find the lines of a program that lies in no file."""
        try:
            lines = source.decode("utf-8", "replace").splitlines(True)
            linecache.cache[name] = (len(source), None, lines, name)
        except Exception:
            pass  # a program replaced the module: its tracebacks lack the lines

    def exit_code(self, code):
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        self.write_error(str(code) + "\n")
        return 1

    def report(self, error, program):
        try:
            error.__traceback__ = self.trim(error.__traceback__, program)
            if sys.excepthook is show_by_default:
                # Before 3.13 the built-in hook looks for lines in files only.
                import traceback

                traceback.print_exception(error)
            else:
                sys.excepthook(type(error), error, error.__traceback__)
        except BaseException:
            show_by_default(type(error), error, error.__traceback__)

    def trim(self, traceback, program):
        """The traceback from the program's first frame on; without one, without the frames of this file."""
        rest = traceback
        while rest is not None:
            if rest.tb_frame.f_code is program:
                return rest
            rest = rest.tb_next
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        return traceback

    def end_threads(self, code):
        threading = modules.get("threading") if count_other_threads() else None
        if threading is None or not hasattr(threading, "enumerate"):
            return code
        try:
            while waiting := [thread for thread in threading.enumerate() if self.holds(threading, thread)]:
                for thread in waiting:
                    thread.join(POOL_STEP_SECONDS if self.is_pool_worker(thread) else None)
        except KeyboardInterrupt as error:
            self.report(error, None)
            return INTERRUPTED
        return code

    def holds(self, threading, thread):
        """Whether the program is not over before this thread is. A pool whose workers all wait for work holds nothing."""
        if thread.daemon or thread is threading.current_thread():
            return False
        if not self.is_pool_worker(thread):
            return True
        pools = modules["concurrent.futures.thread"]
        frame = _current_frames().get(thread.ident)
        idle = frame is not None and frame.f_code is pools._worker.__code__
        return not (idle and pools._threads_queues[thread].empty())

    def is_pool_worker(self, thread):
        pools = modules.get("concurrent.futures.thread")
        return pools is not None and thread in getattr(pools, "_threads_queues", ())

    def write_error(self, text):
        try:
            sys.stderr.write(text)
        except BaseException:
            pass


def contents(path):
    """As `open` would read it, without the layers that a file object has."""
    fd = open_fd(path, O_RDONLY)
    try:
        piece = read(fd, PIECE_BYTES)
        if len(piece) < PIECE_BYTES:
            return piece
        pieces = [piece]
        while piece := read(fd, PIECE_BYTES):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        close(fd)


def holds_more_than_data():
    """Whether something may wait for the collector with a finalizer or a callback. What was frozen is no program's."""
    for thing in get_objects():
        if type(thing) not in DATA:
            return True
    return False


def identity(fd):
    try:
        status = fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_private(name):
    return isinstance(name, str) and name[:1] == "_" and name[1:2] != "_"


Interpreter().serve()
