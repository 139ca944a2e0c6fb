//! Run directories, as another process or another version has left them: the record of a VM and the list of its processes.
//!
//! The oracle is in the sandbox's own `fuzzing` module: what is read of either is the same when it is written and read again.
#![no_main]

use exec_sandbox::fuzzing::run_directory;
use libfuzzer_sys::fuzz_target;

// The record, and after the first NUL, which no text of either has, the children.
fuzz_target!(init: fuzz::sow(seeds()), |files: &[u8]| {
    let record = files.split(|byte| *byte == 0).next().unwrap_or_default();
    run_directory(record, files.get(record.len() + 1..).unwrap_or_default());
});

fn seeds() -> [&'static str; 3] {
    [
        "{\"vm_id\":\"vm-1\",\"owner\":{\"pid\":7,\"start_ticks\":8,\"program\":\"sbx\"},\"created_unix_ms\":5,\
         \"memory_mib\":192,\"language\":\"python\",\"tenant_id\":null,\"image\":\"standard\"}\0qemu 7 99\ngateway 8 99\n",
        "{\"vm_id\":\"vm-1\",\"owner\":{\"pid\":7,\"start_ticks\":8,\"x\":9},\"created_unix_ms\":5,\"memory_mib\":1}\0",
        "\0qemu 7 99\n\n x\nqemu -1 99\nqemu 7\ngateway 8 99 more\nqemu 1 9",
    ]
}
