#include "cuda.h"
namespace ssm {
bool skinny_fits(const device *d, int32_t n) {
    return false;
}
int32_t skinny_x_splits(const device *d) {
    return 8;
}
cudaError_t skinny_in(device *d, int layer, const batch &b) {
    return cudaErrorNotSupported;
}
cudaError_t skinny_x(device *d, int layer, const batch &b) {
    return cudaErrorNotSupported;
}
cudaError_t skinny_out(device *d, int layer, const batch &b) {
    return cudaErrorNotSupported;
}
cudaError_t skinny_head(device *d, const batch &b) {
    return cudaErrorNotSupported;
}
} // namespace ssm
