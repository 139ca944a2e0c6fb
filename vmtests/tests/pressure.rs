//! Programs that take more than there is: what they do ends them and nothing else, and the caller is told what happened.

use std::time::{Duration, Instant};

use exec_sandbox::{Exit, Language, RunRequest};
use vmtests::{World, session::Session, stderr, stdout};

/// Takes memory until there is none: of zeros, which compress to nothing, or of random bytes, which do not compress.
const EATERS: [&str; 2] = [
    "import time\nprint('begun', flush=True)\nheld = []\nwhile True: held.append(b'z' * (1 << 20))",
    "import os\nprint('begun', flush=True)\nheld = []\nwhile True: held.append(os.urandom(1 << 20))",
];

#[tokio::test]
async fn memory_that_is_used_up_ends_the_program_and_says_so_booted_and_restored() {
    let world = World::without_snapshots();
    let scheduler = world.scheduler().await;
    // The first of them boots.
    for code in EATERS.into_iter().chain([EATERS[0]]) {
        let begun = Instant::now();
        let outcome = scheduler.run(RunRequest::new(Language::Python, code)).await.expect("the VM is not lost");
        assert_eq!((outcome.exit, outcome.exit.code()), (Exit::OutOfMemory, 137), "{code}: {}", stderr(&outcome));
        assert_eq!(stdout(&outcome), "begun\n", "what was written before is kept");
        assert!(stderr(&outcome).contains("out of memory"), "{}", stderr(&outcome));
        assert!(begun.elapsed() < Duration::from_secs(30), "{code} took {:?}", begun.elapsed());
    }
    scheduler.close().await.expect("nothing is left");
}

/// What floods the guest, and what has to be said of it. Bombs of processes are among the attacks of `hostile.rs`.
const FLOODS: [(&str, &str); 6] = [
    (
        "import os\nfor n in range(20_000):\n    try: os.close(os.open(f'/tmp/{n}', os.O_CREAT))\n    except OSError as e: print(e.strerror); break\n\
         import shutil\nfor n in os.listdir('/tmp'): os.unlink(f'/tmp/{n}')",
        "No space left on device",
    ),
    (
        "import os\ntry:\n    with open('/tmp/full', 'wb', buffering=0) as f:\n        while True: f.write(bytes(1 << 20))\n\
         except OSError as e: print(e.strerror, os.path.getsize('/tmp/full') > 60 << 20)\nfinally: os.unlink('/tmp/full')",
        "No space left on device True",
    ),
    (
        "import os\nwith open('/tmp/sparse', 'wb') as f: f.truncate(1 << 40)\n\
         print(os.stat('/tmp/sparse').st_size == 1 << 40, os.stat('/tmp/sparse').st_blocks)\nos.unlink('/tmp/sparse')",
        "True 0",
    ),
    (
        "import threading, time\nstop = threading.Event()\nstarted = []\ntry:\n    while len(started) < 2000:\n        t = threading.Thread(target=stop.wait); t.start(); started.append(t)\n\
         except RuntimeError as e: print(len(started) < 1024, e)\nstop.set()\nfor t in started: t.join()",
        "True can't start new thread",
    ),
    (
        "import os\nfds = []\ntry:\n    while True: fds.append(os.open('/dev/null', 0))\n\
         except OSError as e: print(e.strerror)\nfor fd in fds: os.close(fd)",
        "Too many open files",
    ),
    ("import mmap\ntry: mmap.mmap(-1, 1 << 46)\nexcept (OSError, ValueError) as e: print('refused')", "refused"),
];

#[tokio::test]
async fn what_floods_a_guest_is_refused_and_its_session_goes_on() {
    let session = Session::start(Language::Python).await;
    for (code, said) in FLOODS {
        session.says(code, &format!("{said}\n")).await;
        session.says("print(6 * 7)", "42\n").await;
    }
    session.end().await;
}
