//! What a QEMU build says that it can do, read from its `help` answers.

/// The accelerators in the answer to `-accel help`, in QEMU's order.
///
/// It tells what was compiled in, not what works on this host.
pub fn accelerators(answer: &str) -> impl Iterator<Item = &str> {
    answer.lines().map(str::trim).filter(|line| line.split_whitespace().count() == 1)
}

/// Whether the answer to `-machine help` lists a machine type of this name.
#[must_use]
pub fn has_machine(answer: &str, machine_type: &str) -> bool {
    answer.lines().any(|line| line.split_whitespace().next() == Some(machine_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accelerators_are_the_lines_that_are_one_word() {
        let answer = "Accelerators supported in QEMU binary:\ntcg\nkvm\n";
        assert_eq!(accelerators(answer).collect::<Vec<_>>(), ["tcg", "kvm"]);
        assert_eq!(accelerators("\n \ntcg\tkvm\n").count(), 0);
    }

    #[test]
    fn a_machine_is_found_by_its_whole_name() {
        let answer = "Supported machines are:\nmicrovm              microvm (i386)\npc                   Standard PC (alias of pc-i440fx-10.0)\n";
        assert!(has_machine(answer, "microvm"));
        assert!(!has_machine(answer, "micro"));
        assert!(!has_machine(answer, "virt"));
    }
}
