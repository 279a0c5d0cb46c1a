// SPDX-License-Identifier: Apache-2.0
#include <ssm/version.h>

const char *ssm_version_commit(void) {
    return SSM_COMMIT;
}
