import os, sys
os.environ["TRITON_INTERPRET"]="1"
import torch
from fla_mesa import interpreter
from fla_mesa.ops import chunk_mesa_net
from fla_mesa.testing.cases import *
import fla_mesa
def go(s, backends, K=64, natural=False):
    case=Case(T=128 if natural else 64,H=1,K=K,V=K,gates=(.99,.99) if not natural else (1.,1.),initial=not natural)
    x={n:(None if v is None else v.detach()) for n,v in draw(case,torch.bfloat16).items()}
    x["lamb"]=torch.full_like(x["lamb"],.25)
    if natural:
        x["k"]=torch.nn.functional.normalize(x["k"].float()*s+torch.randn(1,1,1,K,generator=torch.Generator().manual_seed(1)),dim=-1).bfloat16(); x["beta"]=torch.ones_like(x["beta"])
    else:
        x["k"]=x["k"][:,:1].expand_as(x["k"]).contiguous()
        kk=x["k"][:,0,:,:,None].float(); x["h_kk_init"]=s*kk*kk.mT; x["h_kv_init"]=s*kk*x["v"][:,0,:,None,:].float()
    names=[n for n in x if x[n] is not None]
    ex={n:(None if v is None else v.double().requires_grad_()) for n,v in x.items()}
    want=run_truth(ex,None)
    w=torch.randn(want[0].shape,generator=torch.Generator().manual_seed(3),dtype=torch.float64)
    gw=torch.autograd.grad(want[0],[ex[n] for n in names],w)
    for be in backends:
        lv={n:(None if v is None else v.clone().requires_grad_()) for n,v in x.items()}
        with interpreter.rounded_dots():
            o=chunk_mesa_net(**lv,backend=be,max_CG_iteration=64 if be!="fla" else 30, **({} if be=="fla" else {"cg_tolerance":1e-3}))[0]
            gg=torch.autograd.grad(o,[lv[n] for n in names],w.to(o.dtype))
        print("natural" if natural else "", s,be,f"o {relative_error(o,want[0]):.1e}",{n:f"{relative_error(a,b):.1e}" for n,a,b in zip(names,gg,gw)},flush=True)
B=sys.argv[1].split(",")
for s in (30,300): go(s,B)
for s in (1.,.3): go(s,B,natural=True)
