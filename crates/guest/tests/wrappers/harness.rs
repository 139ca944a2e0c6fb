//! The agent's part: a control socket at its agreed descriptor, a directory for each execution, files for the output.
#![expect(unsafe_code, reason = "the control socket is put at its descriptor between fork and exec")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tempfile::TempDir;

const CONTROL_FD: i32 = 1000;

/// A wrapper that hangs fails its test; a busy machine does not.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running interpreter.
pub(crate) struct Wrapper {
    child: Child,
    control: BufReader<UnixStream>,
    dir: TempDir,
    executions: u32,
}

/// What came of an execution.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The wrapper reported this code.
    Done(u8),
    /// The interpreter ended.
    Died(ExitStatus),
}

impl Wrapper {
    /// Starts `program` with `arguments` and the wrapper in `file`, and waits until it is ready.
    pub(crate) fn start(program: &str, arguments: &[&str], file: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let output = |name: &str| fs::File::create(dir.path().join(name)).expect("a file");
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let wrapper = format!("{}/src/wrappers/{file}", env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(program);
        command.args(arguments).arg(wrapper).current_dir(dir.path()).env("HOME", dir.path());
        command.env("BUN_RUNTIME_TRANSPILER_CACHE_PATH", "0");
        command.stdin(Stdio::null()).stdout(output("stdout")).stderr(output("stderr"));
        let fd = theirs.as_raw_fd();
        let inherit = move || {
            // SAFETY: dup2 takes two numbers, and the first is open until the child has executed.
            if unsafe { libc::dup2(fd, CONTROL_FD) } < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(inherit) };
        let child = command.spawn().expect("the interpreter is installed");
        drop(theirs);
        let mut wrapper = Self { child, control: BufReader::new(ours), dir, executions: 0 };
        assert_eq!(wrapper.line(), "ready\n", "{}", wrapper.read("stderr"));
        wrapper
    }

    /// Runs a program.
    pub(crate) fn run(&mut self, code: &str) -> Outcome {
        self.run_with(code, "")
    }

    /// Runs a program with variables, each ended by a NUL.
    pub(crate) fn run_with(&mut self, code: &str, variables: &str) -> Outcome {
        self.execute("exec", code, variables)
    }

    /// Runs a program that is nobody's.
    pub(crate) fn rehearse(&mut self, code: &str) -> Outcome {
        self.rehearse_with(code, "")
    }

    /// Runs a program that is nobody's with variables, each ended by a NUL.
    pub(crate) fn rehearse_with(&mut self, code: &str, variables: &str) -> Outcome {
        self.execute("rehearse", code, variables)
    }

    /// Gives the interpreter a seed of 32 such bytes.
    pub(crate) fn reseed(&mut self, byte: u8) {
        let token = "5eed".repeat(8);
        let request = format!("seed\n{token}\n{}\n", format!("{byte:02x}").repeat(32));
        self.control.get_mut().write_all(request.as_bytes()).expect("the wrapper listens");
        assert_eq!([self.line(), self.line()], ["\n".to_owned(), format!("seeded {token}\n")]);
    }

    /// The names in the home directory.
    pub(crate) fn home(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("it is there").flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.retain(|name| !matches!(&name[..], "stdout" | "stderr") && name.parse::<u32>().is_err());
        names
    }

    /// Runs the last program.
    pub(crate) fn run_last(mut self, code: &str) -> Outcome {
        self.execute("last", code, "")
    }

    /// Runs the last program, and ends the agent's side when that has ended; what the interpreter exits with.
    pub(crate) fn run_last_and_leave(mut self, code: &str) -> (Outcome, Option<i32>) {
        let outcome = self.execute("last", code, "");
        self.control.get_mut().shutdown(std::net::Shutdown::Both).expect("it is open");
        let status = self.child.wait().expect("a child");
        (outcome, status.code())
    }

    fn execute(&mut self, verb: &str, code: &str, variables: &str) -> Outcome {
        self.executions += 1;
        let dir = self.dir.path().join(self.executions.to_string());
        fs::create_dir(&dir).expect("a directory");
        fs::write(dir.join("code"), code).expect("a file");
        fs::set_permissions(dir.join("code"), fs::Permissions::from_mode(0o555)).expect("a file of ours");
        fs::write(dir.join("env"), variables).expect("a file");
        let before = (self.read("stdout").len(), self.read("stderr").len());
        let token = format!("{:032x}", self.executions);
        let request = format!("{verb}\n{token}\n{}\n", dir.display());
        self.control.get_mut().write_all(request.as_bytes()).expect("the wrapper listens");
        let end = loop {
            let line = self.line();
            match line.strip_prefix(&format!("done {token} ")) {
                Some(code) => break End::Done(code.trim_end().parse().expect("a code")),
                None if line.is_empty() => break End::Died(self.child.wait().expect("a child")),
                // Whatever a program writes there is a line of its own, and means nothing.
                None => {}
            }
        };
        let since = |text: String, start: usize| text.get(start..).unwrap_or_default().to_owned();
        Outcome { end, stdout: since(self.read("stdout"), before.0), stderr: since(self.read("stderr"), before.1) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).expect("an answer in time");
        line
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join(name)).expect("it was made")).into_owned()
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// Asserts a reported code and the exact standard output, with nothing on standard error.
    pub(crate) fn is_clean(&self, code: u8, stdout: &str) {
        assert_eq!((&self.end, &self.stdout[..], &self.stderr[..]), (&End::Done(code), stdout, ""));
    }
}
