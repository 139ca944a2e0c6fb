# The probes of `checks.txt` for Python. The library puts the checks before this text, as CHECKS: pairs of an attempt and a control, each
# a list of words. A line of output is what came of one pair.
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import stat
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE


def exists(path):
    os.lstat(path)


def read(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_NOCTTY))


def create(directory):
    path = os.path.join(directory, ".posture")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(path)


def list_(directory):
    os.listdir(directory)


def run(directory):
    path = os.path.join(directory, ".posture-program")
    with open(path, "w") as program:
        program.write("#!/bin/true\n")
    os.chmod(path, 0o700)
    try:
        os.waitpid(os.posix_spawn(path, [path], {}), 0)
    finally:
        os.unlink(path)


def call(number, *words):
    arguments = [word[1:].encode() if word.startswith("@") else ctypes.c_long(int(word, 0)) for word in words]
    if LIBC.syscall(ctypes.c_long(int(number, 0)), *arguments) == -1:
        raise OSError(ctypes.get_errno(), number)


def stub(code):
    pid = os.fork()
    if pid == 0:
        page = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex(code))
        ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "ok"


def kill(pid, number):
    os.kill(os.getpid() if pid == "self" else int(pid), int(number))


def word(path, wanted):
    with open(path) as file:
        return "ok" if wanted in file.read().split() else "no"


def mounted(path, option):
    with open("/proc/self/mountinfo") as mounts:
        options = [set(f"{line[5]},{line[-1]}".split(",")) for line in map(str.split, mounts) if line[4] == path]
    return "ok" if options and option in options[-1] else "no"


def status(key):
    with open("/proc/self/status") as lines:
        return "=" + next(line.split()[1] for line in lines if line.startswith(f"{key}:"))


def limit(number):
    soft, hard = resource.getrlimit(int(number))
    return f"={soft}:{hard}"


def python(*words):
    return "ok" if eval(" ".join(words)) else "no"


def raises(function, *arguments):
    try:
        function(*arguments)
    except (OSError, ValueError):
        return True
    return False


def put(path, text):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def child(function, *arguments):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if function(*arguments) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


def memory():
    with open("/proc/meminfo") as lines:
        return int(next(lines).split()[1]) * 1024


def size(path):
    room = os.statvfs(path)
    return room.f_blocks * room.f_frsize


def pagemap():
    page = mmap.mmap(-1, PAGE)
    page.write(b"x")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with open("/proc/self/pagemap", "rb", buffering=0) as frames:
        frames.seek(address // PAGE * 8)
        return struct.unpack("Q", frames.read(8))[0] & ((1 << 55) - 1)


def forced(writable=False):
    page = mmap.mmap(-1, PAGE)
    page.write(b"x")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if not writable and LIBC.mprotect(ctypes.c_void_p(address), PAGE, mmap.PROT_READ) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    with open("/proc/self/mem", "r+b", buffering=0) as own:
        own.seek(address)
        return not raises(own.write, b"y")


def bind(kind, port):
    with socket.socket(socket.AF_INET, kind) as bound:
        bound.bind(("127.0.0.1", port))


def connect(port):
    socket.create_connection(("127.0.0.1", port), 5).close()


def loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect(server.getsockname()[1])
    return True


def down(name):
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", name.encode(), 0))


def answer(kind, *words):
    try:
        return (list_ if kind == "list" else globals()[kind])(*words) or "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno, "error")
    except Exception as error:
        return type(error).__name__


for attempt, control in json.loads(CHECKS):
    print(answer(*attempt), answer(*control))
