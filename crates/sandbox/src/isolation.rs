//! What separates a program from everything else, in layers that can be had one by one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::seccomp::Calls;

/// One layer of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Layer {
    /// User, mount, pid, network, IPC, UTS and control group namespaces, an empty root, no capability.
    Namespaces,
    /// Memory, CPU and processes bounded for the whole tree, and counted.
    ControlGroups,
    /// A list of allowed system calls.
    Seccomp,
    /// No file, no TCP port, no abstract socket and no signal beyond the box.
    Landlock,
}

/// A set of [`Layer`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    bits: u8,
}

/// How hard a box is.
///
/// | level | layers | of its own |
/// |---|---|---|
/// | [`Basic`](Self::Basic) | namespaces, control groups | |
/// | [`Strict`](Self::Strict) | and seccomp, landlock | |
/// | [`Maximum`](Self::Maximum) | as strict | a range of user ids |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// Namespaces and limits.
    Basic,
    /// And a list of system calls, and landlock. The least for what a tenant brings.
    #[default]
    Strict,
    /// And a user id that no other box has at the same time.
    Maximum,
}

/// How a program is shut in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Its layers.
    pub layers: Layers,
    /// The system calls of the layer [`Layer::Seccomp`].
    pub calls: Calls,
    /// Whether its user id is its own while it lives.
    pub own_user: bool,
}

impl Layer {
    /// All of them, outermost first.
    pub const ALL: [Self; 4] = [
        Self::Namespaces,
        Self::ControlGroups,
        Self::Seccomp,
        Self::Landlock,
    ];

    const fn bit(self) -> u8 {
        match self {
            Self::Namespaces => 1,
            Self::ControlGroups => 2,
            Self::Seccomp => 4,
            Self::Landlock => 8,
        }
    }

    /// The name in lower case, as `control groups`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::ControlGroups => "control groups",
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Layers {
    /// None.
    pub const NONE: Self = Self { bits: 0 };
    /// All.
    pub const ALL: Self = Self { bits: 15 };

    /// Whether `layer` is among them.
    #[must_use]
    pub const fn has(self, layer: Layer) -> bool {
        self.bits & layer.bit() != 0
    }

    /// These and `layer`.
    #[must_use]
    pub const fn with(self, layer: Layer) -> Self {
        Self {
            bits: self.bits | layer.bit(),
        }
    }

    /// These but `layer`.
    #[must_use]
    pub const fn without(self, layer: Layer) -> Self {
        Self {
            bits: self.bits & !layer.bit(),
        }
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            bits: self.bits & other.bits,
        }
    }

    /// Those that are here and not in `other`, outermost first.
    pub fn missing_from(self, other: Self) -> impl Iterator<Item = Layer> {
        Layer::ALL
            .into_iter()
            .filter(move |&layer| self.has(layer) && !other.has(layer))
    }

    /// Each of them, outermost first.
    pub fn iter(self) -> impl Iterator<Item = Layer> {
        self.missing_from(Self::NONE)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return formatter.write_str("none");
        }
        for (index, layer) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{layer}")?;
        }
        Ok(())
    }
}

impl Level {
    /// 1, 2 or 3.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Basic => 1,
            Self::Strict => 2,
            Self::Maximum => 3,
        }
    }

    /// The level with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Basic),
            2 => Some(Self::Strict),
            3 => Some(Self::Maximum),
            _ => None,
        }
    }

    /// The layers that it is made of.
    #[must_use]
    pub const fn layers(self) -> Layers {
        match self {
            Self::Basic => Layers::NONE.with(Layer::Namespaces).with(Layer::ControlGroups),
            Self::Strict | Self::Maximum => Layers::ALL,
        }
    }

    /// A box of this level.
    #[must_use]
    pub const fn isolation(self, calls: Calls) -> Isolation {
        Isolation {
            layers: self.layers(),
            calls,
            own_user: matches!(self, Self::Maximum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_a_set_with_an_order() {
        let basic = Level::Basic.layers();
        assert_eq!(basic.to_string(), "namespaces, control groups");
        assert_eq!(Layers::NONE.to_string(), "none");
        let missing: Vec<_> = Layers::ALL.missing_from(basic).collect();
        assert_eq!(missing, [Layer::Seccomp, Layer::Landlock]);
        assert_eq!(Layers::ALL.without(Layer::Seccomp).and(basic), basic);
    }

    #[test]
    fn a_higher_level_has_all_that_a_lower_one_has() {
        for (lower, higher) in [(Level::Basic, Level::Strict), (Level::Strict, Level::Maximum)] {
            assert!(lower < higher);
            assert_eq!(lower.layers().and(higher.layers()), lower.layers());
            assert_eq!(Level::from_number(lower.number()), Some(lower));
        }
        assert_eq!(Level::from_number(0), None);
        assert!(Level::Maximum.isolation(Calls::Worker).own_user);
    }
}
