//! Schemas that the API server checks beyond mere types.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A CIDR as text. The API server takes only what [`podspan_wire::Cidr`] takes: ADDRESS/LENGTH without host
/// bits. What comes back from it is parsed all the same, since anybody with the right may edit a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CidrText(pub String);

impl From<podspan_wire::Cidr> for CidrText {
    fn from(cidr: podspan_wire::Cidr) -> Self {
        Self(cidr.to_string())
    }
}

impl JsonSchema for CidrText {
    fn schema_name() -> Cow<'static, str> {
        "Cidr".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The library of IP addresses is part of CEL in Kubernetes since 1.30. A bound on the length keeps
        // the rule's estimated cost small. The longest CIDR has 43 characters.
        json_schema!({
            "type": "string",
            "maxLength": 43,
            "x-kubernetes-validations": [
                {
                    "rule": "isCIDR(self)",
                    "message": "is not a CIDR: write ADDRESS/LENGTH, such as 10.1.0.0/16 or fd00:1::/48",
                },
                {
                    "rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                    "message": "has host bits set: write the first address of the prefix, such as 10.1.0.0/16",
                },
            ],
        })
    }
}
