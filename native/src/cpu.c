#include "cpu.h"

bool bitm_cpu_has(bitm_tier tier)
{
    switch (tier) {
    case BITM_TIER_SCALAR:
        return true;
    }
    return false;
}
