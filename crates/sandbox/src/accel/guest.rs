//! The test guest: a program that does what a kernel does first, in 650 bytes.
//!
//! It starts as KVM and PVH loaders start a kernel, in 32-bit protected mode without paging. It builds page tables, enters long mode,
//! handles an invalid instruction and page faults through its own interrupt table, uses a model-specific register, reloads CR3, and
//! then computes a checksum over memory, which takes hardware a few milliseconds and an interpreter seconds. It writes a mark to a
//! port at each stage, the checksum after the last, and its exit code to another port.
//!
//! The same bytes run under QEMU's software emulation in the tests, which proves the program right where no hypervisor is to be had.
#![expect(unsafe_code, reason = "the program is assembled into the binary, and read from there by its linker symbols")]

use std::arch::global_asm;

/// Where the program is loaded and starts.
pub(super) const BASE: u32 = 0x10_0000;

/// The guest's memory, from address 0: page tables and stack above the program, then the buffer.
pub(super) const MEMORY_BYTES: usize = 0x30_0000;

/// The port that takes marks and the checksum, one byte at a time; QEMU's debug console has the same.
pub(super) const OUTPUT_PORT: u16 = 0xe9;

/// The port that takes the exit code.
pub(super) const EXIT_PORT: u16 = 0x501;

/// What the program writes if all went well: the marks of [`STAGES`], then the checksum, lowest byte first.
pub(super) const EXPECTED: [u8; 15] =
    [b'p', b'g', b'l', b'x', b'm', b'f', b'w', 0x4f, 0x68, 0x3c, 0x10, 0xef, 0xa6, 0xae, 0xec];

/// The marks in their order, and what the program does after each.
pub(super) const STAGES: [(u8, &str); 7] = [
    (b'p', "building page tables"),
    (b'g', "entering long mode"),
    (b'l', "handling an invalid instruction"),
    (b'x', "setting a model-specific register"),
    (b'm', "faulting pages in"),
    (b'f', "computing"),
    (b'w', "answering"),
];

/// Page tables: four pages, then the interrupt table.
const TABLES: u32 = 0x11_0000;
/// Memory that is computed on, mapped at its own address and page by page at [`WINDOW`].
const BUFFER: u32 = 0x20_0000;
const BUFFER_BYTES: u32 = 0x10_0000;
/// Where pages are missing until they are touched.
const WINDOW: u32 = 0x40_0000;
/// Enough faults to tell a handled one from luck, few enough for a nested hypervisor's 20 µs each.
const WINDOW_PAGES: u32 = 256;
/// Steps of the computation: 3 to 5 ms on hardware, and over 10 s where each instruction is interpreted.
const STEPS: u32 = 2_000_000;
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;

global_asm!(
r#"
    .pushsection .rodata.exec_sandbox_kvm_probe, "a", @progbits
    .balign 16
    .globl exec_sandbox_kvm_probe_start
    .globl exec_sandbox_kvm_probe_end
exec_sandbox_kvm_probe_start:
    .code32
    cli
    cld
    movl ${stack}, %esp
    movb $'p', %al
    outb %al, ${port}

    # Page tables: 4 MiB mapped one to one, the next 2 MiB through an empty table.
    movl ${tables}, %edi
    xorl %eax, %eax
    movl ${table_words}, %ecx
    rep stosl
    movl ${pdpt} + 3, {pml4}
    movl ${pd} + 3, {pdpt}
    movl $0x83, {pd}
    movl $0x200083, {pd} + 8
    movl ${pt} + 3, {pd} + 16
    # PAE, the tables, long mode, paging: in the order that the processor demands.
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl ${pml4}, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    movb $'g', %al
    outb %al, ${port}
    lgdtl {base} + (10f - exec_sandbox_kvm_probe_start)
    ljmpl $8, ${base} + (2f - exec_sandbox_kvm_probe_start)

    .code64
2:  movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl ${stack}, %esp
    movb $'l', %al
    outb %al, ${port}

    # An invalid instruction, whose handler steps over it.
    movl $6, %edi
    leaq 20f(%rip), %rax
    callq 8f
    movl $14, %edi
    leaq 21f(%rip), %rax
    callq 8f
    lidtq 11f(%rip)
    xorl %r12d, %r12d
    ud2
    cmpl $1, %r12d
    jne 9f
    movb $'x', %al
    outb %al, ${port}

    # FS_BASE, read back and used.
    movl $0xc0000100, %ecx
    movl ${buffer}, %eax
    xorl %edx, %edx
    wrmsr
    rdmsr
    cmpl ${buffer}, %eax
    jne 9f
    movl $0x5eed, {buffer}
    cmpl $0x5eed, %fs:0
    jne 9f
    movl $0, {buffer}
    movb $'m', %al
    outb %al, ${port}

    # Page faults, whose handler maps the page; then the mapping is read through a reloaded CR3.
    movl ${window}, %esi
    movl ${window_pages}, %ecx
3:  movl %ecx, (%rsi)
    addl $4096, %esi
    loop 3b
    cmpl ${window_pages} + 1, %r12d
    jne 9f
    movl $64, %ecx
4:  movq %cr3, %rax
    movq %rax, %cr3
    movl {window}, %edx
    cmpl ${window_pages}, %edx
    jne 9f
    loop 4b
    movb $'f', %al
    outb %al, ${port}

    # Numbers scattered over the buffer, then folded into one.
    movl ${buffer}, %edi
    xorl %eax, %eax
    movl ${buffer_bytes}/8, %ecx
    rep stosq
    movl ${buffer}, %edi
    movl $1, %eax
    movabsq ${multiplier}, %r8
    movabsq ${increment}, %r9
    movl ${steps}, %ecx
5:  imulq %r8, %rax
    addq %r9, %rax
    movq %rax, %rdx
    shrq $44, %rdx
    andl ${buffer_bytes} - 8, %edx
    xorq %rax, (%rdi,%rdx)
    decl %ecx
    jnz 5b
    xorl %eax, %eax
    movl ${buffer_bytes}/8, %ecx
6:  rolq $1, %rax
    addq -8(%rdi,%rcx,8), %rax
    loop 6b
    movl $8, %ecx
    movq %rax, %rbx
    movb $'w', %al
    outb %al, ${port}
7:  movb %bl, %al
    outb %al, ${port}
    shrq $8, %rbx
    loop 7b
    movl $0, %eax
    movw ${exit_port}, %dx
    outl %eax, %dx
30: hlt
    jmp 30b

    # Interrupt gate: vector in edi, handler in rax.
8:  shll $4, %edi
    addl ${idt}, %edi
    movw %ax, (%rdi)
    movw $8, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    shrl $16, %eax
    movw %ax, 6(%rdi)
    movq $0, 8(%rdi)
    retq

    # Something was not as it should be.
9:  movb $'!', %al
    outb %al, ${port}
    movl $1, %eax
    movw ${exit_port}, %dx
    outl %eax, %dx
    jmp 30b

    # Invalid instruction: step over its two bytes.
20: incl %r12d
    addq $2, (%rsp)
    iretq

    # Page fault: map the page if it is one of the window's.
21: pushq %rax
    pushq %rdx
    movq %cr2, %rax
    subl ${window}, %eax
    shrl $12, %eax
    cmpl ${window_pages}, %eax
    jae 9b
    movl %eax, %edx
    shll $12, %edx
    addl ${buffer} + 3, %edx
    movl %edx, {pt}(,%rax,8)
    incl %r12d
    popq %rdx
    popq %rax
    addq $8, %rsp
    iretq

    .balign 8
    # The descriptor tables' limits and addresses, and the segments: none, code, data.
10: .word 23
    .long {base} + (12f - exec_sandbox_kvm_probe_start)
    .balign 8
11: .word 15*16-1
    .quad {idt}
    .balign 8
12: .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
exec_sandbox_kvm_probe_end:
    .popsection
"#,
    base = const BASE,
    stack = const TABLES,
    tables = const TABLES,
    table_words = const 4 * 1024,
    pml4 = const TABLES,
    pdpt = const TABLES + 0x1000,
    pd = const TABLES + 0x2000,
    pt = const TABLES + 0x3000,
    idt = const TABLES + 0x4000,
    buffer = const BUFFER,
    buffer_bytes = const BUFFER_BYTES,
    window = const WINDOW,
    window_pages = const WINDOW_PAGES,
    steps = const STEPS,
    multiplier = const MULTIPLIER,
    increment = const INCREMENT,
    port = const OUTPUT_PORT,
    exit_port = const EXIT_PORT,
    options(att_syntax)
);

unsafe extern "C" {
    static exec_sandbox_kvm_probe_start: u8;
    static exec_sandbox_kvm_probe_end: u8;
}

/// The program, to be loaded at [`BASE`].
pub(super) fn program() -> &'static [u8] {
    let start = &raw const exec_sandbox_kvm_probe_start;
    let end = &raw const exec_sandbox_kvm_probe_end;
    let length = end.addr() - start.addr();
    // SAFETY: the assembly above defines both symbols, in this order and in one read-only section, so that what is between them is
    // initialised, lives as long as the program and is never written.
    unsafe { std::slice::from_raw_parts(start, length) }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        process::{Command, Stdio},
    };

    use super::*;

    /// What the program computes, computed here.
    fn checksum() -> u64 {
        let mut buffer = vec![0u64; BUFFER_BYTES as usize / 8];
        let mut number = 1u64;
        for _ in 0..STEPS {
            number = number.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
            let at = usize::try_from(number >> 44).expect("20 bits fit") & (BUFFER_BYTES as usize - 8);
            buffer[at / 8] ^= number;
        }
        buffer.iter().rev().fold(0, |sum: u64, word| sum.rotate_left(1).wrapping_add(*word))
    }

    /// The program as an ELF file with the note by which QEMU starts a kernel in protected mode.
    fn pvh_elf() -> Vec<u8> {
        const NOTE_AT: u64 = 64 + 2 * 56;
        const PROGRAM_AT: u16 = 256;
        let entry = u64::from(BASE).to_le_bytes();
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        // An executable for x86-64 with two program headers after this one and no sections.
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend(entry);
        elf.extend(64u64.to_le_bytes());
        elf.extend([0; 12]);
        elf.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        let length = program().len() as u64;
        for (kind, at, address, bytes) in [(1u32, PROGRAM_AT.into(), u64::from(BASE), length), (4, NOTE_AT, 0, 24)] {
            elf.extend(kind.to_le_bytes());
            elf.extend(7u32.to_le_bytes());
            elf.extend([at, address, address, bytes, bytes, 4].map(u64::to_le_bytes).concat());
        }
        // XEN_ELFNOTE_PHYS32_ENTRY: a name of 4 bytes, a value of 8.
        elf.extend([4u32, 8, 18].map(u32::to_le_bytes).concat());
        elf.extend(b"Xen\0");
        elf.extend(entry);
        elf.resize(PROGRAM_AT.into(), 0);
        elf.extend(program());
        elf
    }

    #[test]
    fn the_expected_answer_is_the_marks_and_the_checksum() {
        let marks = STAGES.map(|(mark, _)| mark);
        assert_eq!(EXPECTED.to_vec(), [&marks[..], &checksum().to_le_bytes()].concat());
    }

    #[test]
    fn the_program_fits_below_the_page_tables() {
        assert!(program().len() < (TABLES - BASE) as usize - 0x1000, "the stack grows down from the tables");
        assert!((BUFFER + BUFFER_BYTES) as usize <= MEMORY_BYTES);
    }

    /// The hypervisor's side of the proof is the same program: so it is shown right on a processor that is known to work.
    #[test]
    #[ignore = "needs qemu-system-x86_64"]
    fn under_software_emulation_the_program_gives_the_expected_answer() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let kernel = dir.path().join("probe.elf");
        fs::write(&kernel, pvh_elf()).expect("writing the program");
        let args = "-nodefaults -no-user-config -display none -no-reboot -M microvm,acpi=off -accel tcg -cpu max -m 16M \
                    -chardev stdio,id=out -device isa-debugcon,iobase=0xe9,chardev=out \
                    -device isa-debug-exit,iobase=0x501,iosize=4 -kernel";
        let output = Command::new("qemu-system-x86_64")
            .args(args.split_ascii_whitespace())
            .arg(&kernel)
            .stdin(Stdio::null())
            .output()
            .expect("running QEMU");
        assert_eq!(output.stdout, EXPECTED, "{}", String::from_utf8_lossy(&output.stderr));
        // isa-debug-exit makes exit code 0 of the guest QEMU's 1.
        assert_eq!(output.status.code(), Some(1));
    }
}
