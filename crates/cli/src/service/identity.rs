//! Who may run whose requests: the same program, with the same configuration, seeing the same machine.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use exec_sandbox::SchedulerConfig;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// What shapes a run on either side of the socket, apart from the request itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Identity {
    /// The file of the program. A build that differs in anything is another file.
    program: String,
    /// The library's digest of configuration, image and QEMU.
    configuration: String,
    /// The namespaces that a VM's network and files depend on: those of a container are others.
    namespaces: String,
}

impl Identity {
    /// This process's, under `config`.
    pub(crate) fn of(config: &SchedulerConfig) -> Result<Self, Failure> {
        let program = program().map_err(|error| Failure::host("looking at this program's file", error))?;
        Ok(Self { program, configuration: config.fingerprint()?, namespaces: namespaces() })
    }

    /// That of `program`, which there is none of.
    #[cfg(test)]
    pub(super) fn pretend(program: &str) -> Self {
        Self { program: program.into(), configuration: String::new(), namespaces: String::new() }
    }

    /// What `other` differs in, if it does.
    pub(crate) fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.program != other.program {
            return Some("it is another build of sbx");
        }
        if self.namespaces != other.namespaces {
            return Some("it is in another container or namespace");
        }
        (self.configuration != other.configuration).then_some("its configuration, image or QEMU is another")
    }
}

/// The file that is executed, whatever has become of its name.
fn program() -> io::Result<String> {
    let this = Path::new("/proc/self/exe");
    let metadata = if this.exists() { fs::metadata(this) } else { std::env::current_exe().and_then(fs::metadata) }?;
    let (dev, ino, size) = (metadata.dev(), metadata.ino(), metadata.size());
    Ok(format!("dev {dev} ino {ino} size {size} mtime {}.{:09}", metadata.mtime(), metadata.mtime_nsec()))
}

/// Empty where there are none.
fn namespaces() -> String {
    let name = |kind| fs::read_link(Path::new("/proc/self/ns").join(kind)).map(|link| link.display().to_string());
    ["mnt", "net", "pid", "user"].into_iter().filter_map(|kind| name(kind).ok()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let text = |text: &str| text.to_owned();
        let own = Identity { program: text("p"), configuration: text("c"), namespaces: text("n") };
        assert_eq!(own.difference(&own.clone()), None);
        let program = Identity { program: text("q"), ..own.clone() };
        assert!(own.difference(&program).is_some_and(|what| what.contains("build")));
        let configuration = Identity { configuration: text("d"), ..own.clone() };
        assert!(own.difference(&configuration).is_some_and(|what| what.contains("configuration")));
        let namespaces = Identity { namespaces: text("m"), ..own.clone() };
        assert!(own.difference(&namespaces).is_some_and(|what| what.contains("container")));
    }

    #[test]
    fn a_program_is_itself_as_long_as_it_runs() {
        assert_eq!(program().expect("it runs"), program().expect("it runs"));
        #[cfg(target_os = "linux")]
        assert!(
            ["mnt:[", "net:[", "pid:[", "user:["].iter().all(|kind| namespaces().contains(kind)),
            "{}",
            namespaces()
        );
    }
}
