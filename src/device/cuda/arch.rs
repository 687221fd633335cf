//! The architectures that kernels are compiled for.

use std::fmt;
use std::str::FromStr;

/// A compute capability as a target: `sm_90`, whose code newer GPUs of its family run too, or
/// `sm_90a`, which has features that no other architecture has (wgmma, for one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch {
    /// 90 for compute capability 9.0.
    pub number: u32,
    /// Whether the features of this architecture alone may be used.
    pub specific: bool,
}

impl Arch {
    /// `sm_<number>`.
    pub const fn new(number: u32) -> Self {
        Arch { number, specific: false }
    }

    /// `sm_<number>a`.
    pub const fn specific(number: u32) -> Self {
        Arch { number, specific: true }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.number, if self.specific { "a" } else { "" })
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("sm_").unwrap_or(text);
        let (digits, specific) = text.strip_suffix('a').map_or((text, false), |digits| (digits, true));
        let number =
            digits.parse().map_err(|_| "an architecture is written sm_90, for compute capability 9.0, or sm_90a");
        Ok(Arch { number: number?, specific })
    }
}
