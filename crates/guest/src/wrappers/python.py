"""The Python interpreter: reads executions from the control socket, runs each in `__main__`, reports its exit code.

The program's `__main__` is a module of its own, which lives from execution to execution; nothing of this file is in it, and no
frame of this file is in a traceback. An execution lasts until its non-daemon threads have ended, as a script does; functions
registered with atexit run when the interpreter exits, which is not at the end of an execution.
"""

import os
import sys

CONTROL_FD = 1000
HOME = "/home/user"
# ast.PyCF_ALLOW_TOP_LEVEL_AWAIT and inspect.CO_COROUTINE, without importing either module.
ALLOW_TOP_LEVEL_AWAIT = 0x2000
CO_COROUTINE = 0x80
# What a shell reports of a program that SIGINT ended.
INTERRUPTED = 130
# Between two looks at a thread pool that is still at work after its program.
POOL_STEP_SECONDS = 0.005


class Interpreter:
    def __init__(self):
        self.pid = os.getpid()
        self.main = type(sys)("__main__")
        self.main.__builtins__ = __builtins__
        self.executions = 0
        self.runner = None
        self.buffer = b""

    def serve(self):
        os.set_inheritable(CONTROL_FD, False)
        sys.modules["__main__"] = self.main
        sys.argv = ["main.py"]
        sys.path[0] = HOME
        sys.stdout.reconfigure(line_buffering=True)
        self.run("pass", "<warm-up>")
        self.say(b"ready\n", 1)
        while True:
            verb, token, directory = self.read_line().split(b" ", 2)
            if verb != b"exec":
                os._exit(70)
            code = self.execute(directory)
            self.flush()
            if os.getpid() != self.pid:
                os._exit(code)  # a copy that the program forked: the end of its program is the end of it
            self.say(b"done %s %d\n" % (token, code), code)

    def read_line(self):
        while b"\n" not in self.buffer:
            piece = os.read(CONTROL_FD, 4096)
            if not piece:
                os._exit(0)  # the agent is gone
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line

    def say(self, line, code):
        try:
            os.write(CONTROL_FD, line)
        except OSError:
            os._exit(code)  # the program closed the socket: then its end is the interpreter's end

    def execute(self, directory):
        self.executions += 1
        name = "main.py" if self.executions == 1 else "main-%d.py" % self.executions
        with open(directory + b"/code", "rb") as file:
            source = file.read()
        saved = self.apply_environment(directory)
        try:
            code = self.run(source, name)
            return self.end_threads(code)
        finally:
            for variable, value in saved.items():
                if value is None:
                    os.environb.pop(variable, None)
                else:
                    os.environb[variable] = value

    def apply_environment(self, directory):
        with open(directory + b"/env", "rb") as file:
            pairs = file.read().split(b"\0")
        saved = {}
        for pair in pairs:
            variable, found, value = pair.partition(b"=")
            if found:
                saved[variable] = os.environb.get(variable)
                os.environb[variable] = value
        return saved

    def run(self, source, name):
        program = None
        try:
            program = compile(source, name, "exec", ALLOW_TOP_LEVEL_AWAIT, True)
            if name != "<warm-up>":
                self.remember(source, name)
            if program.co_flags & CO_COROUTINE:
                self.run_coroutine(eval(program, self.main.__dict__))
            else:
                exec(program, self.main.__dict__)
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
        import linecache

        lines = source.decode("utf-8", "replace").splitlines(True)
        linecache.cache[name] = (len(source), None, lines, name)

    def exit_code(self, code):
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        self.write_error(str(code) + "\n")
        return 1

    def report(self, error, program):
        error.__traceback__ = self.trim(error.__traceback__, program)
        try:
            if sys.excepthook is sys.__excepthook__:
                # Before 3.13 the built-in hook looks for lines in files only.
                import traceback

                traceback.print_exception(error)
            else:
                sys.excepthook(type(error), error, error.__traceback__)
        except BaseException:
            sys.__excepthook__(type(error), error, error.__traceback__)

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
        threading = sys.modules.get("threading")
        if threading is None:
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
        pools = sys.modules["concurrent.futures.thread"]
        frame = sys._current_frames().get(thread.ident)
        idle = frame is not None and frame.f_code is pools._worker.__code__
        return not (idle and pools._threads_queues[thread].empty())

    def is_pool_worker(self, thread):
        pools = sys.modules.get("concurrent.futures.thread")
        return pools is not None and thread in getattr(pools, "_threads_queues", ())

    def flush(self):
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                pass  # closed, replaced, or its reader is gone: the program's own business

    def write_error(self, text):
        try:
            sys.stderr.write(text)
        except BaseException:
            pass


Interpreter().serve()
