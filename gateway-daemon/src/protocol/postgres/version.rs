//! The protocol's minor versions. Weir speaks its own with each side: what an agent asks for has nothing to do with what
//! the server can (`PostgreSQL` manual, "Protocol Versions").

/// The shortest secret of a cancel key: what protocol 3.0 has room for.
pub const MIN_SECRET: usize = 4;

/// The longest secret of a cancel key.
pub const MAX_SECRET: usize = 256;

/// A version of the protocol that Weir speaks. There was never a 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolVersion {
    /// 3.0: secrets of cancel keys have four bytes.
    V3_0,
    /// 3.2: they have 4 to 256 bytes.
    V3_2,
}

impl ProtocolVersion {
    /// The newest that a peer who asks for 3.`minor` can be given.
    pub const fn at_most(minor: u16) -> Self {
        match minor {
            0 | 1 => Self::V3_0,
            2.. => Self::V3_2,
        }
    }

    /// As in a start-up message: major version in the upper half, minor version in the lower.
    pub const fn code(self) -> u32 {
        match self {
            Self::V3_0 => 0x0003_0000,
            Self::V3_2 => 0x0003_0002,
        }
    }

    /// Whether it is 3.`minor`.
    pub const fn is(self, minor: u16) -> bool {
        matches!((self, minor), (Self::V3_0, 0) | (Self::V3_2, 2))
    }

    /// Whether a cancel key's secret may have that many bytes.
    pub fn takes_secret_of(self, bytes: usize) -> bool {
        match self {
            Self::V3_0 => bytes == MIN_SECRET,
            Self::V3_2 => (MIN_SECRET..=MAX_SECRET).contains(&bytes),
        }
    }
}
