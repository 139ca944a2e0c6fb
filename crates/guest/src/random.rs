//! The kernel's random generator, as far as a machine that is a copy of another has to do with it.
//!
//! A copy goes on with the generator's state, so it would draw what every other copy draws, until it is given a seed of its own. All
//! that is random in the guest comes from there: tokens, identities and, by `getrandom` with or without a system call, programs.
#![expect(unsafe_code, reason = "two requests that rustix does not have")]

use std::fmt;

use exec_sandbox_wire::limits::SEED_BYTES;
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{NoArg, Opcode, Setter, ioctl, opcode},
    rand::GetRandomFlags,
};

const DEVICE: &str = "/dev/urandom";

/// Linux's `RNDADDENTROPY`, whose argument is declared as two numbers and is longer, and `RNDRESEEDCRNG`.
const ADD_ENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 3);
const RESEED: Opcode = opcode::none(b'R', 7);

/// The seed's length as the kernel counts it, and how much of it is random: all.
const BYTES: i32 = 32;
const ENTROPY_BITS: i32 = 8 * BYTES;
const _: () = assert!(SEED_BYTES == 32);

/// Random bytes that somebody else's numbers shall depend on. Never shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed([u8; SEED_BYTES]);

/// The kernel's generator, open to be seeded. Held from the start: a copy is seeded before its first answer, and finding the device
/// is then the greater part of that.
#[derive(Debug)]
pub(crate) struct Generator(OwnedFd);

/// Linux's `struct rand_pool_info`.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    seed: [u8; SEED_BYTES],
}

impl Seed {
    /// The seed that a host has sent, if it has the length of one.
    pub(crate) fn from_host(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Draws one.
    pub(crate) fn draw() -> Result<Self, Errno> {
        let mut bytes = [0; SEED_BYTES];
        rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

impl Generator {
    /// Opens it.
    pub(crate) fn open() -> Result<Self, Errno> {
        rustix::fs::open(DEVICE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Gives it a seed that counts in full, and has it draw its key anew: what is drawn from here on depends on the seed.
    pub(crate) fn seed(&self, seed: &Seed) -> Result<(), Errno> {
        let info = PoolInfo { entropy_bits: ENTROPY_BITS, bytes: BYTES, seed: seed.0 };
        // SAFETY: the request reads a `rand_pool_info` and as many bytes behind its two numbers as the second of them says, which is what
        // `PoolInfo` is; it keeps nothing.
        let add = unsafe { Setter::<ADD_ENTROPY, PoolInfo>::new(info) };
        // SAFETY: the request takes no argument.
        let reseed = unsafe { NoArg::<RESEED>::new() };
        // SAFETY: the descriptor is open, and is the device that the request is for.
        unsafe { ioctl(&self.0, add) }?;
        // SAFETY: the same.
        unsafe { ioctl(&self.0, reseed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_that_linux_gave_them() {
        assert_eq!((ADD_ENTROPY, RESEED), (0x4008_5203, 0x5207));
    }

    #[test]
    fn a_seed_has_its_length_and_is_not_shown() {
        let seed = Seed::from_host(&[0xa5; SEED_BYTES]).expect("it is long enough");
        assert_eq!(seed.to_string(), "a5".repeat(SEED_BYTES));
        assert_eq!(format!("{seed:?}"), "Seed(…)");
        for wrong in [0, 1, SEED_BYTES - 1, SEED_BYTES + 1] {
            assert_eq!(Seed::from_host(&vec![0; wrong]), None, "{wrong}");
        }
        assert_ne!(Seed::draw(), Seed::draw());
    }
}
