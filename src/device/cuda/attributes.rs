//! What the driver is told of a launch beside its size.

use super::launch::Launch;
use cudarc::driver::sys::{
    CUlaunchAttribute, CUlaunchAttributeID as Id, CUlaunchAttributeValue as Value,
    CUlaunchAttributeValue_union__bindgen_ty_1 as Cluster,
};

/// The attributes of a launch; `overlaps`: it may begin while the kernel before it still runs.
pub(super) fn attributes(launch: &Launch, overlaps: bool) -> Vec<CUlaunchAttribute> {
    let [x, y, z] = launch.cluster;
    // GPUs before sm_90 know no clusters, not even of one block.
    let cluster = (launch.cluster != [1; 3])
        .then_some((Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, Value { clusterDim: Cluster { x, y, z } }));
    let overlap = overlaps.then_some((
        Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        Value { programmaticStreamSerializationAllowed: 1 },
    ));
    cluster.into_iter().chain(overlap).map(|(id, value)| CUlaunchAttribute { id, pad: [0; 4], value }).collect()
}
