//! What a program says that is taken for QEMU: its version, and what its build can do.
//!
//! The oracle: a version that was read says the same when it is shown in QEMU's words and read again; an error shows a bounded piece
//! of the answer; accelerators are single words of it; a machine is listed exactly if a line begins with its name.
#![no_main]

use exec_sandbox_qemu::{QemuVersion, accelerators, has_machine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::sow(seeds()), |answer: &[u8]| {
    let answer = &*String::from_utf8_lossy(answer);
    match QemuVersion::parse(answer) {
        Ok(version) => {
            assert_eq!(QemuVersion::parse(&format!("QEMU emulator version {version}\n")), Ok(version));
        }
        Err(error) => assert!(error.first_line.chars().count() <= 200),
    }
    for name in accelerators(answer) {
        assert_eq!(name.split_whitespace().collect::<Vec<_>>(), [name]);
        assert!(answer.lines().any(|line| line.trim() == name));
    }
    for word in answer.split_whitespace().take(20) {
        let is_first = answer.lines().any(|line| line.trim_start().split(char::is_whitespace).next() == Some(word));
        assert_eq!(has_machine(answer, word), is_first, "{word}");
    }
    assert!(!has_machine(answer, "") && !has_machine(answer, "a b"));
});

fn seeds() -> [&'static str; 4] {
    [
        "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025\n",
        "QEMU emulator version 10.1.91\n",
        "Accelerators supported in QEMU binary:\ntcg\nkvm\n",
        "Supported machines are:\nmicrovm              microvm (i386)\npc                   Standard PC (alias)\n",
    ]
}
